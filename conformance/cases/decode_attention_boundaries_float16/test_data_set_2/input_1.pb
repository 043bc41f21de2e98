
BK_newJh¿¶¹