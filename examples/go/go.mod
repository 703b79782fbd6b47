module example.org/lockstep

go 1.19
