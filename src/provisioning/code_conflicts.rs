//! Checks that no code has two meanings. In an organisation a code belongs to one customer, or it is the generic code of one
//! series, never both.
//!
//! Generated codes are checked when they are issued. This file checks, once for each file of `apply`, that no generic code has
//! another meaning, and that no shape could generate a generic code or an uploaded one.

use std::collections::BTreeMap;

use super::changes::Changes;
use super::toml::Mistake;
use crate::db::DbError;
use crate::db::provisioning::{Provisioning, StoredOrganisation};
use crate::model::{ClientHandling, CodeShape, FilePosition, Series, SeriesId};

/// Finds the generic codes of a file that a series of the same file could draw.
pub(super) fn conflicts_in_file<'a>(
    series: &'a [Series],
    positions: &'a BTreeMap<SeriesId, FilePosition>,
) -> impl Iterator<Item = (&'a FilePosition, String)> {
    series.iter().filter_map(|generic| {
        let code = generic_code(generic)?;
        let other = series.iter().find(|other| shape(other).is_some_and(|shape| shape.could_generate(code)))?;
        Some((positions.get(&generic.id)?, could_be_drawn(other)))
    })
}

/// Checks the codes of the file against the database. Locks the organisation's pools against uploads until the end of the
/// transaction, so that the result still holds when the file takes effect.
pub(super) async fn check(
    transaction: &mut Provisioning,
    changes: &Changes<'_>,
    stored: &StoredOrganisation,
) -> Result<Vec<Mistake>, DbError> {
    if changes.codes.is_empty() {
        return Ok(Vec::new());
    }
    transaction.pause_uploads(changes.plan.id).await?;
    let generic = transaction.generic_codes(changes.plan.id).await?;
    let mut mistakes = personal_code_conflicts(transaction, changes).await?;
    mistakes.extend(generic_conflicts(changes, stored, &generic));
    mistakes.extend(shape_conflicts(transaction, changes, stored, &generic).await?);
    Ok(mistakes)
}

/// Finds the generic codes of the file that are also coupons or uploaded codes. Run this again while issuing is paused: until
/// then a coupon may draw such a code by a shape that the file changes.
pub(super) async fn personal_code_conflicts(
    transaction: &mut Provisioning,
    changes: &Changes<'_>,
) -> Result<Vec<Mistake>, DbError> {
    let codes: Vec<&str> = changes.codes.iter().filter_map(|series| generic_code(series)).collect();
    if codes.is_empty() {
        return Ok(Vec::new());
    }
    let personal = transaction.personal_codes(changes.plan.id, &codes).await?;
    let mistakes = changed_codes(changes, generic_code).flat_map(|(_, code, position)| {
        personal.iter().filter(move |personal| personal.code == code).map(move |personal| {
            let kind = if personal.is_issued { "the code of a coupon" } else { "an uploaded code" };
            Mistake::at(position, format!("is also {kind} of series {}", personal.series_id.0))
        })
    });
    Ok(mistakes.collect())
}

/// Finds the generic codes of the file that another series has, had, or could draw. [`conflicts_in_file`] covers the series that
/// the file lists.
fn generic_conflicts(
    changes: &Changes<'_>,
    stored: &StoredOrganisation,
    generic: &[(SeriesId, String)],
) -> Vec<Mistake> {
    let is_listed = |id: SeriesId| changes.plan.series.iter().any(|listed| listed.id == id);
    let mut mistakes = Vec::new();
    for (series, code, position) in changed_codes(changes, generic_code) {
        let others = generic.iter().filter(|(id, other)| *id != series.id && other == code);
        let others = others.map(|(id, _)| format!("is, or was before, the generic code of series {}", id.0));
        let drawn = stored.series.values().filter(|series| !is_listed(series.id));
        let drawn =
            drawn.filter(|series| shape(series).is_some_and(|shape| shape.could_generate(code))).map(could_be_drawn);
        mistakes.extend(others.chain(drawn).map(|message| Mistake::at(position, message)));
    }
    mistakes
}

/// Finds the shapes of the file that could draw an uploaded code or a generic code, present or former. Skips a stored shape: it
/// was checked when it was new, and each later code was checked against it.
async fn shape_conflicts(
    transaction: &mut Provisioning,
    changes: &Changes<'_>,
    stored: &StoredOrganisation,
    generic: &[(SeriesId, String)],
) -> Result<Vec<Mistake>, DbError> {
    let mut seen: Vec<&CodeShape> = stored.series.values().filter_map(shape).collect();
    let mut mistakes = Vec::new();
    for (_, shape, position) in changed_codes(changes, shape) {
        if seen.contains(&shape) {
            continue;
        }
        seen.push(shape);
        let drawn = generic.iter().filter(|(_, code)| shape.could_generate(code));
        let drawn = drawn.map(|(id, code)| {
            format!("could draw {code:?}, which is, or was before, the generic code of series {}", id.0)
        });
        let pooled = transaction.drawable_pool_code(changes.plan.id, shape).await?;
        let pooled = pooled.map(|(id, code)| format!("could draw an uploaded code of series {}, {code}", id.0));
        let messages = drawn.chain(pooled).map(|message| format!("{message}: choose another prefix or length"));
        mistakes.extend(messages.map(|message| Mistake::at(position, message)));
    }
    Ok(mistakes)
}

/// The series whose codes change and for which `codes_of` returns something, with the position of the codes in the file.
fn changed_codes<'a, T: ?Sized + 'a>(
    changes: &Changes<'a>,
    codes_of: impl Fn(&'a Series) -> Option<&'a T>,
) -> impl Iterator<Item = (&'a Series, &'a T, &'a FilePosition)> {
    let positions = &changes.plan.code_positions;
    changes.codes.iter().filter_map(move |series| Some((*series, codes_of(series)?, positions.get(&series.id)?)))
}

fn could_be_drawn(by: &Series) -> String {
    format!("could also be drawn for series {}: give one of them another length or a prefix", by.id.0)
}

fn generic_code(series: &Series) -> Option<&str> {
    match &series.client_handling {
        ClientHandling::Generic(code) => Some(code),
        ClientHandling::Generated(_) | ClientHandling::Pool => None,
    }
}

fn shape(series: &Series) -> Option<&CodeShape> {
    match &series.client_handling {
        ClientHandling::Generated(shape) => Some(shape),
        ClientHandling::Generic(_) | ClientHandling::Pool => None,
    }
}
