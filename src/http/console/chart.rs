//! Charts as inline SVG, without script or style, stretched to the available space. The page also shows the numbers as text.

use std::fmt::Write;

use maud::{Markup, html};

use crate::activity::HOUR;

const HEIGHT: i64 = 100;

/// Issued and refused coupons in each minute, stacked. `top` is the upper end of the axis.
pub(super) fn hour(issued: &[i64; HOUR], refused: &[i64; HOUR], top: i64) -> Markup {
    let below = [0; HOUR];
    html! {
        svg class="bars" viewBox={ "0 0 " (HOUR) " " (HEIGHT) } preserveAspectRatio="none" role="img" aria-labelledby="chart-words" {
            g class="grid" {
                @for y in [0, HEIGHT / 2, HEIGHT] {
                    line x1="0" x2=(HOUR) y1=(y) y2=(y) vector-effect="non-scaling-stroke" {}
                }
            }
            path class="issued" d=(bars(issued, &below, top)) {}
            path class="refused" d=(bars(refused, issued, top)) {}
        }
    }
}

/// Issued coupons of one series in each minute, relative to its highest minute.
pub(super) fn spark(per_minute: &[i64; HOUR]) -> Markup {
    let top = per_minute.iter().copied().max().unwrap_or(0).max(1);
    html! {
        svg class="spark" viewBox={ "0 0 " (HOUR) " " (HEIGHT) } preserveAspectRatio="none" aria-hidden="true" {
            line x1="0" x2=(HOUR) y1=(HEIGHT) y2=(HEIGHT) vector-effect="non-scaling-stroke" {}
            path class="issued" d=(bars(per_minute, &[0; HOUR], top)) {}
        }
    }
}

/// The used share of a cap.
pub(super) fn share(issued: i64, cap: i64) -> Markup {
    let used = if cap > 0 { i128::from(issued.clamp(0, cap)) * 100 / i128::from(cap) } else { 100 };
    html! {
        svg class="share" viewBox="0 0 100 4" preserveAspectRatio="none" aria-hidden="true" {
            rect class="whole" width="100" height="4" {}
            rect class="issued" width=(used) height="4" {}
        }
    }
}

/// The upper end of an axis: a round, even number that is not below `highest`.
pub(super) fn top(highest: i64) -> i64 {
    let digits = highest.max(1).ilog10();
    let step = 2 * 10_i64.pow(digits.saturating_sub(1));
    highest.max(1).div_euclid(step).saturating_add(i64::from(highest.max(1) % step > 0)).saturating_mul(step)
}

/// A path of bars, each on top of the one in `below`.
fn bars(counts: &[i64; HOUR], below: &[i64; HOUR], top: i64) -> String {
    let mut path = String::new();
    for (minute, (count, below)) in counts.iter().zip(below).enumerate().filter(|(_, (count, _))| **count > 0) {
        let foot = HEIGHT - scaled(*below, top);
        // Even a single coupon is visible.
        let height = scaled(*count, top).max(1);
        // Writing to a string cannot fail.
        let _ = write!(path, "M{minute}.1 {foot}v-{height}h.8v{height}z");
    }
    path
}

fn scaled(count: i64, top: i64) -> i64 {
    i64::try_from(i128::from(count) * i128::from(HEIGHT) / i128::from(top.max(1))).unwrap_or(HEIGHT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_axis_ends_at_a_round_number() {
        let tops = [0, 1, 2, 3, 4, 5, 10, 11, 39, 41, 100, 12_345].map(top);
        assert_eq!(tops, [2, 2, 2, 4, 4, 6, 10, 12, 40, 42, 100, 14_000]);
        assert!(top(i64::MAX) > 0);
    }

    #[test]
    fn bars_stand_on_each_other() {
        let (mut issued, mut refused) = ([0; HOUR], [0; HOUR]);
        issued[0] = 5;
        (issued[59], refused[59]) = (10, 1);
        assert_eq!(bars(&issued, &[0; HOUR], 20), "M0.1 100v-25h.8v25zM59.1 100v-50h.8v50z");
        assert_eq!(bars(&refused, &issued, 20), "M59.1 50v-5h.8v5z");
    }
}
