//! The hook that ends a process lets a panic pass that one client's connection has caused. In a process of its own: the
//! hook is the process's, and where it does not let one pass this test ends by a signal.

use longshore_broker::contain::{self, contain};

#[tokio::test]
async fn a_connections_panic_ends_neither_the_process_nor_the_thread() {
    contain::abort_on_others();
    let task = tokio::spawn(contain(async { panic!("of a test: a task") }));
    assert!(task.await.unwrap_err().is_panic());
    for _ in 0..3 {
        let check = tokio::task::spawn_blocking(|| contain::compute(|| panic!("of a test: a computation")));
        assert!(check.await.unwrap_err().is_panic());
    }
    let marked =
        tokio::task::spawn_blocking(|| (contain::compute(contain::is_contained), contain::is_contained()));
    assert_eq!(marked.await.unwrap(), (true, false), "the thread goes on with others");
}
