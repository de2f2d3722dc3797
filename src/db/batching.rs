use std::collections::VecDeque;

use tokio::sync::mpsc::Receiver;
use tokio::task::yield_now;

/// Waits for one item, and takes with it what else is queued, up to a total size of `limit` (the last item may exceed it). `None`: the
/// queue is closed and empty.
pub(super) async fn take_batch<T>(
    queue: &mut Receiver<T>,
    limit: usize,
    size: impl Fn(&T) -> usize,
) -> Option<VecDeque<T>> {
    let first = queue.recv().await?;
    let mut taken_size = size(&first);
    let mut taken = VecDeque::from([first]);
    // Tasks that are about to enqueue run first: a fuller batch costs less for each item. With nothing else to run this returns at
    // once.
    yield_now().await;
    while taken_size < limit {
        let Ok(next) = queue.try_recv() else { break };
        taken_size += size(&next);
        taken.push_back(next);
    }
    Some(taken)
}
