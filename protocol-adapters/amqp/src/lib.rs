//! AMQP 0-9-1 as RabbitMQ speaks it, on the broker API
