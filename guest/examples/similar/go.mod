module similar

go 1.24

require realm v0.0.0

replace realm => ../../go
