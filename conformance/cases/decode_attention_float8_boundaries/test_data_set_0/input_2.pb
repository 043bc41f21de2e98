
BV_newJ½Zº