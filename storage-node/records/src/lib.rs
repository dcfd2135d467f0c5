//! Where each stored record lives: index, tail, reads, liveness and rewriting
