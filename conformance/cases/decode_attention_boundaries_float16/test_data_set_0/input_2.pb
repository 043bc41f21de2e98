
BV_newJv8”¹