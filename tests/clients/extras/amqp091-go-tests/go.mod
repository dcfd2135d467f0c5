// Names the version of the client whose tests are run; run.sh copies its source from here.
module client-tests

go 1.25

require github.com/rabbitmq/amqp091-go v1.16.0
