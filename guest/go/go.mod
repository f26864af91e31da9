module realm

go 1.24
