// Command client-suite runs the table of assertions by amqp091-go: `suite URI`. Each test is named as in ../table.txt.

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// tests is the table, in its order.
var tests = []struct {
	name string
	run  func(s *scene)
}{
	{"declare_server_named", declareServerNamed},
	{"declare_equivalent", declareEquivalent},
	{"declare_inequivalent", declareInequivalent},
	{"declare_passive_missing", declarePassiveMissing},
	{"declare_reserved_name", declareReservedName},
	{"exclusive_locked", exclusiveLocked},
	{"exclusive_gone", exclusiveGone},
	{"queue_type_quorum", queueTypeQuorum},
	{"exchange_inequivalent", exchangeInequivalent},
	{"bind_direct", bindDirect},
	{"bind_topic", bindTopic},
	{"bind_fanout", bindFanout},
	{"bind_headers", bindHeaders},
	{"bind_exchange", bindExchange},
	{"unbind_stops", unbindStops},
	{"alternate_exchange", alternateExchange},
	{"publish_confirmed", publishConfirmed},
	{"publish_returned", publishReturned},
	{"publish_missing_exchange", publishMissingExchange},
	{"consume_ack", consumeAck},
	{"consume_no_ack", consumeNoAck},
	{"prefetch_limits", prefetchLimits},
	{"unacked_come_back", unackedComeBack},
	{"reject_requeue", rejectRequeue},
	{"nack_multiple", nackMultiple},
	{"ack_multiple", ackMultiple},
	{"ack_unknown_tag", ackUnknownTag},
	{"get_message", getMessage},
	{"get_empty", getEmpty},
	{"purge_counts", purgeCounts},
	{"delete_if_unused", deleteIfUnused},
	{"delete_if_empty", deleteIfEmpty},
	{"cancel_stops", cancelStops},
	{"cancel_notification", cancelNotification},
	{"exclusive_consumer", exclusiveConsumer},
	{"properties_kept", propertiesKept},
	{"headers_kept", headersKept},
	{"empty_body", emptyBody},
	{"large_body", largeBody},
	{"expiration", expiration},
	{"message_ttl", messageTTL},
	{"channel_error_isolated", channelErrorIsolated},
	{"transaction", transaction},
	{"direct_reply_to", directReplyTo},
	{"wrong_password", wrongPassword},
	{"missing_vhost", missingVhost},
}

func declareServerNamed(s *scene) {
	name := s.privateQueue()
	check(strings.HasPrefix(name, "amq.gen-"), "named %s", name)
	s.send(name, "x")
	s.holds(name, "x")
}

func declareEquivalent(s *scene) {
	queue := s.queue(nil)
	s.send(queue, "1", "2")
	again := must(s.channel.QueueDeclare(queue, true, false, false, false, nil))
	check(again.Messages == 2, "%d messages", again.Messages)
}

func declareInequivalent(s *scene) {
	queue := s.queue(nil)
	text := refused(s.channel, 406, func() error {
		_, err := s.channel.QueueDeclare(queue, false, false, false, false, nil)
		return err
	})
	check(strings.Contains(text, "inequivalent arg"), "%s", text)
}

func passive(channel *amqp.Channel, queue string) func() error {
	return func() error {
		_, err := channel.QueueDeclarePassive(queue, false, false, false, false, nil)
		return err
	}
}

func declarePassiveMissing(s *scene) {
	text := refused(s.channel, 404, passive(s.channel, "go-missing"))
	check(strings.Contains(text, "no queue 'go-missing'"), "%s", text)
}

func declareReservedName(s *scene) {
	refused(s.channel, 403, func() error {
		_, err := s.channel.QueueDeclare("amq.something", true, false, false, false, nil)
		return err
	})
}

func exclusiveLocked(s *scene) {
	other := newScene()
	defer other.end()
	name := s.privateQueue()
	refused(other.channel, 405, passive(other.channel, name))
}

func exclusiveGone(s *scene) {
	other := newScene()
	defer other.end()
	name := s.privateQueue()
	try(s.connection.Close())
	refused(other.channel, 404, passive(other.channel, name))
}

func queueTypeQuorum(s *scene) {
	queue := s.queue(amqp.Table{"x-queue-type": "quorum"})
	s.send(queue, "x")
	s.holds(queue, "x")
}

func exchangeInequivalent(s *scene) {
	exchange := s.exchange("direct", nil)
	refused(s.channel, 406, func() error {
		return s.channel.ExchangeDeclare(exchange, "fanout", false, false, false, false, nil)
	})
}

func bindDirect(s *scene) {
	exchange, queue := s.exchange("direct", nil), s.queue(nil)
	s.bind(queue, exchange, "yes", nil)
	s.sendTo(exchange, "yes", "1")
	s.sendTo(exchange, "no", "2")
	s.sendTo(exchange, "yes", "3")
	s.holds(queue, "1", "3")
}

func bindTopic(s *scene) {
	exchange, star, hash := s.exchange("topic", nil), s.queue(nil), s.queue(nil)
	s.bind(star, exchange, "a.*.c", nil)
	s.bind(hash, exchange, "a.#", nil)
	for _, key := range []string{"a.b.c", "a", "a.b.b.c", "b.a"} {
		s.sendTo(exchange, key, key)
	}
	s.holds(star, "a.b.c")
	s.holds(hash, "a.b.c", "a", "a.b.b.c")
}

func bindFanout(s *scene) {
	exchange := s.exchange("fanout", nil)
	queues := []string{s.queue(nil), s.queue(nil), s.queue(nil)}
	for _, queue := range queues {
		s.bind(queue, exchange, "", nil)
	}
	s.sendTo(exchange, "any", "x")
	for _, queue := range queues {
		s.holds(queue, "x")
	}
}

func bindHeaders(s *scene) {
	exchange, all, any := s.exchange("headers", nil), s.queue(nil), s.queue(nil)
	s.bind(all, exchange, "", amqp.Table{"x-match": "all", "a": int32(1), "b": "two"})
	s.bind(any, exchange, "", amqp.Table{"x-match": "any", "a": int32(1), "b": "two"})
	s.publish(exchange, "",
		amqp.Publishing{Body: []byte("both"), Headers: amqp.Table{"a": int32(1), "b": "two"}},
		amqp.Publishing{Body: []byte("one"), Headers: amqp.Table{"a": int32(1)}},
		amqp.Publishing{Body: []byte("none"), Headers: amqp.Table{"c": int32(1)}})
	s.holds(all, "both")
	s.holds(any, "both", "one")
}

func bindExchange(s *scene) {
	outer, inner, queue := s.exchange("topic", nil), s.exchange("fanout", nil), s.queue(nil)
	try(s.channel.ExchangeBind(inner, "k.#", outer, false, nil))
	s.bind(queue, inner, "", nil)
	s.sendTo(outer, "k.1", "1")
	s.sendTo(outer, "other", "2")
	s.holds(queue, "1")
}

func unbindStops(s *scene) {
	exchange, queue := s.exchange("direct", nil), s.queue(nil)
	s.bind(queue, exchange, "k", nil)
	s.sendTo(exchange, "k", "1")
	try(s.channel.QueueUnbind(queue, "k", exchange, nil))
	s.sendTo(exchange, "k", "2")
	s.holds(queue, "1")
}

func alternateExchange(s *scene) {
	alternate, queue := s.exchange("fanout", nil), s.queue(nil)
	exchange := s.exchange("direct", amqp.Table{"alternate-exchange": alternate})
	s.bind(queue, alternate, "", nil)
	s.sendTo(exchange, "nowhere", "x")
	s.holds(queue, "x")
}

func publishConfirmed(s *scene) {
	queue, bodies := s.queue(nil), numbers(1000)
	s.send(queue, bodies...)
	check(s.count(queue) == 1000, "%d messages", s.count(queue))
	s.holds(queue, bodies...)
}

func publishReturned(s *scene) {
	try(s.channel.Confirm(false))
	returns := s.channel.NotifyReturn(make(chan amqp.Return, 1))
	confirms := s.channel.NotifyPublish(make(chan amqp.Confirmation, 1))
	try(s.channel.PublishWithContext(context.Background(), "", "go-missing", true, false, amqp.Publishing{Body: []byte("x")}))
	check(next(confirms).Ack, "was refused")
	check(len(returns) == 1, "was confirmed before it was returned")
	returned := next(returns)
	check(returned.ReplyCode == 312 && string(returned.Body) == "x", "%v", returned)
}

func publishMissingExchange(s *scene) {
	refused(s.channel, 404, func() error {
		return s.channel.PublishWithContext(context.Background(), "go-missing", "k", false, false, amqp.Publishing{})
	})
}

func consumeAck(s *scene) {
	queue, bodies := s.queue(nil), numbers(100)
	s.send(queue, bodies...)
	got := consume(s.channel, queue, "", false).until(100)
	equal(bodiesOf(got), bodies...)
	for _, message := range got {
		try(message.Ack(false))
	}
	s.reopen()
	s.empty(queue)
}

func consumeNoAck(s *scene) {
	queue := s.queue(nil)
	s.send(queue, numbers(20)...)
	consume(s.channel, queue, "", true).until(20)
	s.reopen()
	until(func() bool { return s.count(queue) == 0 })
}

func prefetchLimits(s *scene) {
	queue := s.queue(nil)
	s.send(queue, numbers(30)...)
	try(s.channel.Qos(10, 0, false))
	box := consume(s.channel, queue, "", false)
	got := box.until(10)
	box.stays(10)
	try(got[0].Ack(false))
	box.until(11)
	box.stays(11)
}

func unackedComeBack(s *scene) {
	queue := s.queue(nil)
	s.send(queue, "1", "2", "3")
	first := must(s.connection.Channel())
	for _, message := range consume(first, queue, "", false).until(3) {
		check(!message.Redelivered, "marked redelivered at first")
	}
	try(first.Close())
	for _, body := range []string{"1", "2", "3"} {
		message := s.get(queue, true)
		check(string(message.Body) == body && message.Redelivered, "%s, redelivered %v", message.Body, message.Redelivered)
	}
}

func rejectRequeue(s *scene) {
	queue := s.queue(nil)
	s.send(queue, "x")
	try(s.get(queue, false).Reject(true))
	again := s.get(queue, true)
	check(again.Redelivered && string(again.Body) == "x", "%s, redelivered %v", again.Body, again.Redelivered)
}

func nackMultiple(s *scene) {
	queue := s.queue(nil)
	s.send(queue, "1", "2", "3")
	taken := []amqp.Delivery{s.get(queue, false), s.get(queue, false), s.get(queue, false)}
	try(taken[2].Nack(true, true))
	s.holds(queue, "1", "2", "3")
}

func ackMultiple(s *scene) {
	queue := s.queue(nil)
	s.send(queue, "1", "2", "3")
	taken := []amqp.Delivery{s.get(queue, false), s.get(queue, false), s.get(queue, false)}
	try(taken[1].Ack(true))
	s.reopen()
	s.holds(queue, "3")
}

func ackUnknownTag(s *scene) {
	text := refused(s.channel, 406, func() error { return s.channel.Ack(99, false) })
	check(strings.Contains(text, "unknown delivery tag 99"), "%s", text)
}

func getMessage(s *scene) {
	queue := s.queue(nil)
	s.send(queue, "1", "2", "3")
	message := s.get(queue, true)
	check(string(message.Body) == "1" && message.MessageCount == 2, "%s, %d left", message.Body, message.MessageCount)
}

func getEmpty(s *scene) {
	s.empty(s.queue(nil))
}

func purgeCounts(s *scene) {
	queue := s.queue(nil)
	s.send(queue, numbers(7)...)
	purged := must(s.channel.QueuePurge(queue, false))
	check(purged == 7, "%d purged", purged)
	s.empty(queue)
}

func deleteIfUnused(s *scene) {
	other := newScene()
	defer other.end()
	queue := s.queue(nil)
	consume(s.channel, queue, "", false)
	refused(other.channel, 406, func() error {
		_, err := other.channel.QueueDelete(queue, true, false, false)
		return err
	})
}

func deleteIfEmpty(s *scene) {
	queue := s.queue(nil)
	s.send(queue, "x")
	refused(s.channel, 406, func() error {
		_, err := s.channel.QueueDelete(queue, false, true, false)
		return err
	})
}

func cancelStops(s *scene) {
	queue := s.queue(nil)
	box := consume(s.channel, queue, "tag", true)
	s.send(queue, "1")
	box.until(1)
	try(s.channel.Cancel("tag", false))
	s.send(queue, "2")
	box.stays(1)
	s.holds(queue, "2")
}

func cancelNotification(s *scene) {
	queue := s.queue(nil)
	cancelled := s.channel.NotifyCancel(make(chan string, 1))
	consume(s.channel, queue, "tag", false)
	must(must(s.connection.Channel()).QueueDelete(queue, false, false, false))
	tag := next(cancelled)
	check(tag == "tag", "cancelled %s", tag)
}

func exclusiveConsumer(s *scene) {
	other := newScene()
	defer other.end()
	queue := s.queue(nil)
	must(s.channel.Consume(queue, "", false, true, false, false, nil))
	refused(other.channel, 403, func() error {
		_, err := other.channel.Consume(queue, "", false, false, false, false, nil)
		return err
	})
}

func propertiesKept(s *scene) {
	sent := amqp.Publishing{
		ContentType: "text/plain", ContentEncoding: "utf-8", DeliveryMode: amqp.Persistent, Priority: 5, CorrelationId: "c-1",
		ReplyTo: "answers", Expiration: "600000", MessageId: "m-1", Timestamp: time.Unix(1234567890, 0), Type: "greeting",
		UserId: "guest", AppId: "suite", Body: []byte("x"),
	}
	queue := s.queue(nil)
	s.publish("", queue, sent)
	d := s.get(queue, true)
	got := amqp.Publishing{
		ContentType: d.ContentType, ContentEncoding: d.ContentEncoding, DeliveryMode: d.DeliveryMode, Priority: d.Priority,
		CorrelationId: d.CorrelationId, ReplyTo: d.ReplyTo, Expiration: d.Expiration, MessageId: d.MessageId,
		Timestamp: d.Timestamp.Local(), Type: d.Type, UserId: d.UserId, AppId: d.AppId, Body: d.Body,
	}
	check(reflect.DeepEqual(got, sent), "%+v", got)
}

func headersKept(s *scene) {
	sent := amqp.Table{
		"text": "grüße", "number": int64(1) << 40, "small": int32(-5), "true": true, "nothing": nil, "double": 1.25,
		"array": []any{int32(1), "two", amqp.Table{"three": int32(3)}}, "bytes": []byte("plain"),
		"table": amqp.Table{"nested": amqp.Table{"deep": "value"}}, "decimal": amqp.Decimal{Scale: 2, Value: 125},
		"time": time.Unix(1577934245, 0),
	}
	queue := s.queue(nil)
	s.publish("", queue, amqp.Publishing{Headers: sent})
	got := s.get(queue, true).Headers
	got["time"] = got["time"].(time.Time).Local()
	check(reflect.DeepEqual(got, sent), "%#v", got)
}

func emptyBody(s *scene) {
	queue := s.queue(nil)
	s.send(queue, "")
	s.holds(queue, "")
}

func largeBody(s *scene) {
	body := strings.Repeat("0123456789abcdef", 5<<16)
	queue := s.queue(nil)
	s.send(queue, body, "after")
	check(string(s.get(queue, true).Body) == body, "the body has changed")
	s.holds(queue, "after")
}

func expiration(s *scene) {
	queue := s.queue(nil)
	s.publish("", queue, amqp.Publishing{Body: []byte("x"), Expiration: "100"})
	until(func() bool { return s.count(queue) == 0 })
	s.empty(queue)
}

func messageTTL(s *scene) {
	queue := s.queue(amqp.Table{"x-message-ttl": int32(100)})
	s.send(queue, "x")
	until(func() bool { return s.count(queue) == 0 })
	s.empty(queue)
}

func channelErrorIsolated(s *scene) {
	queue, broken := s.queue(nil), must(s.connection.Channel())
	refused(broken, 404, passive(broken, "go-missing"))
	s.send(queue, "x")
	s.holds(queue, "x")
}

func transaction(s *scene) {
	queue, channel := s.queue(nil), must(s.connection.Channel())
	publish := func(body string) {
		try(channel.PublishWithContext(context.Background(), "", queue, false, false, amqp.Publishing{Body: []byte(body)}))
	}
	try(channel.Tx())
	publish("kept")
	s.empty(queue)
	try(channel.TxCommit())
	s.holds(queue, "kept")
	publish("dropped")
	try(channel.TxRollback())
	try(channel.TxCommit())
	s.empty(queue)
}

func directReplyTo(s *scene) {
	const pseudo = "amq.rabbitmq.reply-to"
	server := newScene()
	defer server.end()
	requests := server.queue(nil)
	answers := consume(s.channel, pseudo, "", true)
	try(s.channel.PublishWithContext(context.Background(), "", requests, false, false,
		amqp.Publishing{Body: []byte("?"), ReplyTo: pseudo}))
	address := server.get(requests, true).ReplyTo
	check(strings.HasPrefix(address, pseudo+"."), "reply to %s", address)
	server.send(address, "!")
	equal(bodiesOf(answers.until(1)), "!")
}

// notLetIn checks that a connection is refused with this code.
func notLetIn(uri string, code int) {
	connection, err := amqp.Dial(uri)
	if err == nil {
		connection.Close()
	}
	var refusal *amqp.Error
	check(errors.As(err, &refusal) && refusal.Code == code, "%v, expected %d", err, code)
}

// The client does not ask for the reason of a failed login, so a broker may as well hang up: both are 403 to it.
func wrongPassword(*scene) {
	notLetIn(strings.Replace(uri, "guest:guest", "guest:wrong", 1), 403)
}

func missingVhost(*scene) {
	notLetIn(uri+"/go-missing", 530)
}

// report runs a test in a scene of its own and prints its line; it answers whether the test passed.
// A test that hangs ends the suite: the client has no deadline for most of its calls.
func report(name string, run func(s *scene)) (passed bool) {
	limit := time.AfterFunc(testLimit, func() {
		fmt.Println("not ok", name, "did not end in time; the tests after it were not run")
		os.Exit(1)
	})
	defer limit.Stop()
	defer func() {
		if failure := recover(); failure != nil {
			fmt.Println("not ok", name, strings.ReplaceAll(fmt.Sprint(failure), "\n", " "))
			return
		}
		fmt.Println("ok", name)
		passed = true
	}()
	s := newScene()
	defer s.end()
	run(s)
	return
}

func main() {
	code := 0
	for _, test := range tests {
		if !report(test.name, test.run) {
			code = 1
		}
	}
	os.Exit(code)
}
