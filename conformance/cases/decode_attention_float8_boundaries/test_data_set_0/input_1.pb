
BK_newJTº}<