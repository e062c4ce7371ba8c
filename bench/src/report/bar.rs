//! An interval as a small bar, for the cell of a table.

use maud::{Markup, html};

use super::chart::px;

const WIDTH: f64 = 160.0;
const HEIGHT: f64 = 18.0;

/// A ratio with its interval on a logarithmic scale, around a line that says 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Bar {
    pub(super) ratio: f64,
    pub(super) low: f64,
    pub(super) high: f64,
}

/// The side of the line that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Below,
    Above,
    /// None is.
    Neither,
}

/// How far the scale of several bars goes: from 1 / `reach` to `reach`.
pub(super) fn reach(bars: impl IntoIterator<Item = Bar>, most: f64) -> f64 {
    let ends = bars.into_iter().flat_map(|bar| [bar.low, bar.ratio, bar.high]);
    let far = ends
        .filter(|end| *end > 0.0 && end.is_finite())
        .map(|end| end.max(1.0 / end))
        .fold(1.0, f64::max);
    [1.1, 1.25, 1.5, 2.0, 4.0, 8.0]
        .into_iter()
        .find(|reach| far <= *reach)
        .unwrap_or(most)
        .min(most)
}

impl Bar {
    /// As SVG, with class `word` for its colour.
    pub(super) fn markup(self, reach: f64, good: Side, word: &str, title: &str) -> Markup {
        let middle = WIDTH / 2.0;
        let at = |ratio: f64| match ratio > 0.0 {
            true => middle + (ratio.ln() / reach.ln()).clamp(-1.0, 1.0) * (middle - 6.0),
            false => 6.0,
        };
        let (low, high) = (at(self.low.min(self.high)), at(self.low.max(self.high)));
        html! {
            svg class={ "bar " (word) } viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } role="img" {
                title { (title) }
                @match good {
                    Side::Below => rect.good x="0" y="0" width=(middle) height=(HEIGHT) {},
                    Side::Above => rect.good x=(middle) y="0" width=(middle) height=(HEIGHT) {},
                    Side::Neither => {}
                }
                line.one x1=(middle) y1="0" x2=(middle) y2=(HEIGHT) {}
                rect.range x=(px(low)) y="6" width=(px((high - low).max(2.0))) height="6" rx="1" {}
                circle.value cx=(px(at(self.ratio))) cy="9" r="4" {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_scale_goes_as_far_as_the_bars_do() {
        let bar = |low, high| Bar { ratio: 1.0, low, high };
        assert_eq!(reach([bar(0.95, 1.02)], 8.0), 1.1);
        assert_eq!(reach([bar(0.95, 1.02), bar(0.3, 1.0)], 8.0), 4.0);
        assert_eq!(reach([bar(0.001, 1e9)], 4.0), 4.0);
        assert_eq!(reach([bar(0.0, f64::NAN)], 8.0), 1.1);
        assert_eq!(reach([], 8.0), 1.1);
    }

    proptest! {
        #[test]
        fn any_bar_stays_in_its_cell(ratio in any::<f64>(), low in any::<f64>(), high in any::<f64>()) {
            let bar = Bar { ratio, low, high };
            let markup = bar.markup(reach([bar], 4.0), Side::Below, "same", "<b>").into_string();
            let document = roxmltree::Document::parse(&markup).unwrap();
            for name in ["x", "width", "cx"] {
                for node in document.descendants().filter(|node| node.has_attribute(name)) {
                    let place: f64 = node.attribute(name).unwrap().parse().unwrap();
                    prop_assert!((0.0..=WIDTH).contains(&place), "{markup}");
                }
            }
        }
    }
}
