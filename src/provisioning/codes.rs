//! One code, one meaning: in an organisation a code is one customer's, or the generic one of one series, and never both.
//!
//! Codes that are drawn are checked when they are issued. What the file says of codes is checked here, once: that no generic code is
//! anything else, and that no shape could draw a generic code or one that was uploaded.

use std::collections::BTreeMap;

use super::changes::Changes;
use super::toml::Mistake;
use crate::db::DbError;
use crate::db::provisioning::{Provisioning, StoredOrganisation};
use crate::model::{ClientHandling, CodeShape, Place, Series, SeriesId};

/// What is wrong with the generic codes of a file: those that a series of it could draw.
pub(super) fn drawn_in_file<'a>(
    series: &'a [Series],
    places: &'a BTreeMap<SeriesId, Place>,
) -> impl Iterator<Item = (&'a Place, String)> {
    series.iter().filter_map(|one| {
        let code = generic_code(one)?;
        let other = series.iter().find(|other| shape(other).is_some_and(|shape| shape.could_draw(code)))?;
        Some((places.get(&one.id)?, could_be_drawn(other)))
    })
}

/// What the database has against the codes of the file. Until the end of the transaction nobody uploads into the pools of the
/// organisation: what holds here holds when the file takes effect.
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
    let mut mistakes = personal(transaction, changes).await?;
    mistakes.extend(shared(changes, stored, &generic));
    mistakes.extend(shapes(transaction, changes, stored, &generic).await?);
    Ok(mistakes)
}

/// The generic codes of the file that one customer has or will have. To be asked once more when nothing is being issued: a coupon may
/// have drawn one by a shape that the file changes.
pub(super) async fn personal(transaction: &mut Provisioning, changes: &Changes<'_>) -> Result<Vec<Mistake>, DbError> {
    let codes: Vec<&str> = changes.codes.iter().filter_map(|one| generic_code(one)).collect();
    if codes.is_empty() {
        return Ok(Vec::new());
    }
    let personal = transaction.personal_codes(changes.plan.id, &codes).await?;
    let told = placed(changes, generic_code).flat_map(|(_, code, place)| {
        personal.iter().filter(move |personal| personal.code == code).map(move |personal| {
            let is = if personal.is_issued { "the code of a coupon" } else { "an uploaded code" };
            Mistake::at(place, format!("is also {is} of series {}", personal.series_id.0))
        })
    });
    Ok(told.collect())
}

/// The generic codes of the file that another series has, had, or could draw. Those of the file itself were looked at with it.
fn shared(changes: &Changes<'_>, stored: &StoredOrganisation, generic: &[(SeriesId, String)]) -> Vec<Mistake> {
    let is_listed = |id: SeriesId| changes.plan.series.iter().any(|listed| listed.id == id);
    let mut mistakes = Vec::new();
    for (series, code, place) in placed(changes, generic_code) {
        let others = generic.iter().filter(|(id, other)| *id != series.id && other == code);
        let others = others.map(|(id, _)| format!("is, or was before, the generic code of series {}", id.0));
        let drawn = stored.series.values().filter(|one| !is_listed(one.id));
        let drawn = drawn.filter(|one| shape(one).is_some_and(|shape| shape.could_draw(code))).map(could_be_drawn);
        mistakes.extend(others.chain(drawn).map(|told| Mistake::at(place, told)));
    }
    mistakes
}

/// The shapes of the file that could draw a generic code, of whichever time, or an uploaded one. A shape that is stored already does
/// not: it was looked at when it was new, and so is each code.
async fn shapes(
    transaction: &mut Provisioning,
    changes: &Changes<'_>,
    stored: &StoredOrganisation,
    generic: &[(SeriesId, String)],
) -> Result<Vec<Mistake>, DbError> {
    let mut seen: Vec<&CodeShape> = stored.series.values().filter_map(shape).collect();
    let mut mistakes = Vec::new();
    for (_, shape, place) in placed(changes, shape) {
        if seen.contains(&shape) {
            continue;
        }
        seen.push(shape);
        let drawn = generic.iter().filter(|(_, code)| shape.could_draw(code));
        let drawn = drawn.map(|(id, code)| {
            format!("could draw {code:?}, which is, or was before, the generic code of series {}", id.0)
        });
        let pooled = transaction.drawable_pool_code(changes.plan.id, shape).await?;
        let pooled = pooled.map(|(id, code)| format!("could draw an uploaded code of series {}, {code}", id.0));
        let told = drawn.chain(pooled).map(|told| format!("{told}: choose another prefix or length"));
        mistakes.extend(told.map(|told| Mistake::at(place, told)));
    }
    Ok(mistakes)
}

/// Of the series whose codes change, those that have such codes, and where the file says so.
fn placed<'a, T: ?Sized + 'a>(
    changes: &Changes<'a>,
    of: impl Fn(&'a Series) -> Option<&'a T>,
) -> impl Iterator<Item = (&'a Series, &'a T, &'a Place)> {
    let places = &changes.plan.code_places;
    changes.codes.iter().filter_map(move |one| Some((*one, of(one)?, places.get(&one.id)?)))
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
