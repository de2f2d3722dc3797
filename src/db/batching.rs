use std::collections::{HashMap, VecDeque};

use tokio::sync::mpsc::Receiver;
use tokio::task::yield_now;

use crate::model::OrgId;

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

/// A queue whose batches take from the organisations in turn, so that a busy one delays the others by its own share only.
#[derive(Debug)]
pub(super) struct FairReceiver<T> {
    queue: Receiver<(OrgId, T)>,
    /// What was received and not yet taken. No list is empty.
    waiting: HashMap<OrgId, VecDeque<T>>,
    /// The organisations with waiting items, in the order of their turns.
    turns: VecDeque<OrgId>,
}

impl<T> FairReceiver<T> {
    pub(super) fn new(queue: Receiver<(OrgId, T)>) -> Self {
        Self { queue, waiting: HashMap::new(), turns: VecDeque::new() }
    }

    /// Like [`take_batch`].
    pub(super) async fn take(&mut self, limit: usize, size: impl Fn(&T) -> usize) -> Option<Vec<T>> {
        if self.turns.is_empty() {
            let first = self.queue.recv().await?;
            self.add(first);
            yield_now().await;
        }
        while let Ok(next) = self.queue.try_recv() {
            self.add(next);
        }
        let (mut taken, mut taken_size) = (Vec::new(), 0);
        while taken_size < limit
            && let Some(item) = self.next()
        {
            taken_size += size(&item);
            taken.push(item);
        }
        Some(taken)
    }

    fn add(&mut self, (org_id, item): (OrgId, T)) {
        let items = self.waiting.entry(org_id).or_default();
        if items.is_empty() {
            self.turns.push_back(org_id);
        }
        items.push_back(item);
    }

    fn next(&mut self) -> Option<T> {
        let org_id = self.turns.pop_front()?;
        let items = self.waiting.get_mut(&org_id)?;
        let item = items.pop_front();
        if items.is_empty() {
            self.waiting.remove(&org_id);
        } else {
            self.turns.push_back(org_id);
        }
        item
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn organisations_take_turns() {
        let (sender, queue) = mpsc::channel(100);
        for (org_id, item) in [(1, "a1"), (1, "a2"), (1, "a3"), (1, "a4"), (2, "b1"), (3, "c1"), (3, "c2")] {
            sender.send((OrgId(org_id), item)).await.unwrap();
        }
        let mut fair = FairReceiver::new(queue);
        assert_eq!(fair.take(4, |_| 1).await.unwrap(), ["a1", "b1", "c1", "a2"]);
        sender.send((OrgId(2), "b2")).await.unwrap();
        drop(sender);
        assert_eq!(fair.take(100, |_| 1).await.unwrap(), ["c2", "a3", "b2", "a4"]);
        assert_eq!(fair.take(4, |_| 1).await, None);
    }
}
