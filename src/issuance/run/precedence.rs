use std::collections::HashSet;

use crate::db::SeriesAtRevision;
use crate::model::{ClientHandling, SeriesId};

/// The order of the entities within one request. A repeated series or a mutually exclusive one waits for the next round until the
/// earlier entity is decided. If the order cannot matter, no entity waits.
#[derive(Default)]
pub(super) struct Precedence {
    sent: HashSet<SeriesId>,
    is_exclusive_sent: bool,
}

impl Precedence {
    pub(super) fn must_wait(&self, series_id: SeriesId, at: &SeriesAtRevision) -> bool {
        self.sent.contains(&series_id) || (at.is_exclusive && self.is_exclusive_sent)
    }

    pub(super) fn add_sent(&mut self, series_id: SeriesId, at: &SeriesAtRevision) {
        let series = &at.series;
        let is_order_irrelevant = at.is_independent()
            && series.max_create.is_none()
            && !matches!(series.client_handling, ClientHandling::Pool);
        if !is_order_irrelevant {
            self.sent.insert(series_id);
        }
        self.is_exclusive_sent |= at.is_exclusive;
    }
}
