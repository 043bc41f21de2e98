
BK_newJ8R: