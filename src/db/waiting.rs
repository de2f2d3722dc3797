//! What waits on a queue, taken together: whoever shares a round trip shares its cost.
//! Knows nothing of what is queued.

use std::collections::VecDeque;

use tokio::sync::mpsc::Receiver;
use tokio::task::yield_now;

/// Waits for one, and takes with it what else is waiting, up to a size of `limit` (the last may go beyond). `None`: the queue
/// is closed and empty.
pub(super) async fn take<T>(queue: &mut Receiver<T>, limit: usize, size: impl Fn(&T) -> usize) -> Option<VecDeque<T>> {
    let first = queue.recv().await?;
    let mut taken_size = size(&first);
    let mut taken = VecDeque::from([first]);
    // Those who are about to ask get the chance: a fuller batch costs less for each. With nothing else to run this returns
    // at once.
    yield_now().await;
    while taken_size < limit {
        let Ok(next) = queue.try_recv() else { break };
        taken_size += size(&next);
        taken.push_back(next);
    }
    Some(taken)
}
