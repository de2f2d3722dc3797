use crate::db::writer::Work;

/// What a round gives to the writer, with the indices of the entities.
#[derive(Default)]
pub(super) struct Plan {
    pub(super) indices: Vec<usize>,
    pub(super) works: Vec<Work>,
    /// The entities whose answer is flushed already.
    pub(super) flushed: Vec<usize>,
}

impl Plan {
    pub(super) fn add(&mut self, index: usize, work: Work) {
        self.indices.push(index);
        self.works.push(work);
    }

    pub(super) fn add_flushed(&mut self, index: usize) {
        self.flushed.push(index);
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.works.is_empty() && self.flushed.is_empty()
    }
}
