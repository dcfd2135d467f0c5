//! The broken build is broken in the way that its switch says.
#![cfg(test)]

mod common;

use common::{Append, Put, apply, batch};
use longshore_mutations::Mutation;
use longshore_shard::Shard;
use longshore_wire::batch::Item;
use longshore_wire::spec::LogSpec;
use longshore_wire::{LogId, Offset, SessionId, ShardId};

#[test]
fn the_broken_build_stores_a_batch_twice() {
    let mut shard = Shard::new(ShardId(1));
    let setup = [Item::CreateLog { log: LogId(1), spec: LogSpec::QUEUE }, Item::OpenSession(SessionId(7))];
    apply(&mut shard, 0, &batch(0, 0, &setup.map(Put::Item)));
    let data = batch(7, 1, &[Put::Append(Append::to(1))]);
    apply(&mut shard, 0, &data);
    longshore_mutations::choose(Some(Mutation::BatchNumberLost));
    let mut broken = Shard::restore(ShardId(1), shard.all_pages()).unwrap();
    apply(&mut broken, 0, &data);
    longshore_mutations::choose(None);
    apply(&mut shard, 0, &data);
    let next = |shard: &Shard| shard.log(LogId(1)).unwrap().next();
    assert_eq!((next(&shard), next(&broken)), (Offset(1), Offset(2)));
}
