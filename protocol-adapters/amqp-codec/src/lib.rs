//! AMQP 0-9-1 frames and methods; without I/O
