// The helpers of the suite: a scene for each test, waiting until something holds, and failing by panic.

package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// patience is how long something that must come may take; idle is how long we look for what must not come.
// A test that takes longer than testLimit has failed.
const (
	patience  = 10 * time.Second
	idle      = 300 * time.Millisecond
	testLimit = 60 * time.Second
)

var uri = os.Args[len(os.Args)-1]

// check fails the test unless it holds. Tests fail by panic: main reports it.
func check(holds bool, format string, args ...any) {
	if !holds {
		panic(fmt.Sprintf(format, args...))
	}
}

func try(err error) { check(err == nil, "%v", err) }

func must[T any](value T, err error) T {
	try(err)
	return value
}

func equal(got []string, want ...string) {
	check(slices.Equal(got, want), "got %.200q, expected %.200q", got, want)
}

// until waits until the condition holds.
func until(condition func() bool) {
	for end := time.Now().Add(patience); !condition(); time.Sleep(5 * time.Millisecond) {
		check(time.Now().Before(end), "it did not come in time")
	}
}

// next takes what must come from a channel.
func next[T any](from <-chan T) T {
	select {
	case value, open := <-from:
		check(open, "closed instead of an answer")
		return value
	case <-time.After(patience):
		panic("it did not come in time")
	}
}

func unique() string {
	var id [16]byte
	rand.Read(id[:])
	return "go-" + hex.EncodeToString(id[:])
}

func numbers(count int) []string {
	bodies := make([]string, count)
	for n := range bodies {
		bodies[n] = fmt.Sprint(n)
	}
	return bodies
}

// scene is a connection with a channel, and names that no other test uses; end removes all of it.
type scene struct {
	connection        *amqp.Connection
	channel           *amqp.Channel
	queues, exchanges []string
}

func newScene() *scene {
	connection := must(amqp.Dial(uri))
	return &scene{connection: connection, channel: must(connection.Channel())}
}

func (s *scene) end() {
	if s.connection.IsClosed() {
		s.connection = must(amqp.Dial(uri))
	}
	defer s.connection.Close()
	channel := must(s.connection.Channel())
	for _, queue := range s.queues {
		must(channel.QueueDelete(queue, false, false, false))
	}
	for _, exchange := range s.exchanges {
		try(channel.ExchangeDelete(exchange, false, false))
	}
}

// queue declares a durable queue.
func (s *scene) queue(arguments amqp.Table) string {
	name := unique()
	must(s.channel.QueueDeclare(name, true, false, false, false, arguments))
	s.queues = append(s.queues, name)
	return name
}

func (s *scene) privateQueue() string {
	return must(s.channel.QueueDeclare("", false, false, true, false, nil)).Name
}

func (s *scene) exchange(kind string, arguments amqp.Table) string {
	name := unique()
	try(s.channel.ExchangeDeclare(name, kind, false, false, false, false, arguments))
	s.exchanges = append(s.exchanges, name)
	return name
}

func (s *scene) bind(queue, exchange, key string, arguments amqp.Table) {
	try(s.channel.QueueBind(queue, key, exchange, false, arguments))
}

// send publishes persistent messages to a queue and waits for their confirms.
func (s *scene) send(queue string, bodies ...string) { s.sendTo("", queue, bodies...) }

func (s *scene) sendTo(exchange, key string, bodies ...string) {
	messages := make([]amqp.Publishing, len(bodies))
	for n, body := range bodies {
		messages[n] = amqp.Publishing{DeliveryMode: amqp.Persistent, Body: []byte(body)}
	}
	s.publish(exchange, key, messages...)
}

func (s *scene) publish(exchange, key string, messages ...amqp.Publishing) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	try(s.channel.Confirm(false))
	confirms := make([]*amqp.DeferredConfirmation, len(messages))
	for n, message := range messages {
		confirms[n] = must(s.channel.PublishWithDeferredConfirmWithContext(ctx, exchange, key, false, false, message))
	}
	for _, confirm := range confirms {
		check(must(confirm.WaitContext(ctx)), "a message was refused")
	}
}

// get waits for a queue's next message.
func (s *scene) get(queue string, autoAck bool) (message amqp.Delivery) {
	until(func() (ok bool) {
		var err error
		message, ok, err = s.channel.Get(queue, autoAck)
		try(err)
		return ok
	})
	return message
}

func (s *scene) bodies(queue string, count int) (bodies []string) {
	for range count {
		bodies = append(bodies, string(s.get(queue, true).Body))
	}
	return bodies
}

func (s *scene) empty(queue string) {
	message, ok, err := s.channel.Get(queue, true)
	try(err)
	check(!ok, "%s holds %.50q", queue, message.Body)
}

// holds checks that a queue holds these messages and no others.
func (s *scene) holds(queue string, bodies ...string) {
	equal(s.bodies(queue, len(bodies)), bodies...)
	s.empty(queue)
}

// count is how many messages of a queue are ready.
func (s *scene) count(queue string) int {
	channel := must(s.connection.Channel())
	defer channel.Close()
	return must(channel.QueueDeclarePassive(queue, true, false, false, false, nil)).Messages
}

// reopen closes the channel, which returns what it has not acked, and opens another.
func (s *scene) reopen() {
	try(s.channel.Close())
	s.channel = must(s.connection.Channel())
}

// refused checks that the call closes the channel with this code, and answers the text.
func refused(channel *amqp.Channel, code int, call func() error) string {
	closed := channel.NotifyClose(make(chan *amqp.Error, 1))
	_ = call() // an error here is the same one, or only says that the channel is closed
	err := next(closed)
	check(err.Code == code, "%v, expected %d", err, code)
	return err.Reason
}

// mailbox is what a consumer has got so far.
type mailbox struct {
	lock sync.Mutex
	got  []amqp.Delivery
}

// consume starts a consumer with the given tag.
func consume(channel *amqp.Channel, queue, tag string, autoAck bool) *mailbox {
	box := &mailbox{}
	deliveries := must(channel.Consume(queue, tag, autoAck, false, false, false, nil))
	go func() {
		for delivery := range deliveries {
			box.lock.Lock()
			box.got = append(box.got, delivery)
			box.lock.Unlock()
		}
	}()
	return box
}

func (box *mailbox) all() []amqp.Delivery {
	box.lock.Lock()
	defer box.lock.Unlock()
	return slices.Clone(box.got)
}

// until waits for so many messages, and answers them.
func (box *mailbox) until(count int) []amqp.Delivery {
	until(func() bool { return len(box.all()) >= count })
	return box.all()
}

// stays checks that no more than so many messages come.
func (box *mailbox) stays(count int) {
	time.Sleep(idle)
	check(len(box.all()) == count, "%d messages came, expected %d", len(box.all()), count)
}

func bodiesOf(deliveries []amqp.Delivery) (bodies []string) {
	for _, delivery := range deliveries {
		bodies = append(bodies, string(delivery.Body))
	}
	return bodies
}
