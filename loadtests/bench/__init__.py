"""The benchmark behind `make bench`: what one request costs a gateway, in CPU time, beside peers in the same run."""
