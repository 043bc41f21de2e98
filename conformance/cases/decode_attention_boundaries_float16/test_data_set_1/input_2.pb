
BV_newJV1d<