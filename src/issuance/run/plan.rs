use crate::db::writer::Work;

/// What a round gives to the writer, with the indices of the entities.
#[derive(Default)]
pub(super) struct Plan {
    pub(super) indices: Vec<usize>,
    pub(super) works: Vec<Work>,
}

impl Plan {
    pub(super) fn add(&mut self, index: usize, work: Work) {
        self.indices.push(index);
        self.works.push(work);
    }
}
