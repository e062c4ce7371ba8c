//! Charts with two axes, as SVG. Colours are classes, so that the page's style gives those of a light
//! or dark page and of paper.

use maud::{Markup, PreEscaped, html};

use super::scale::Scale;

/// Series that have a colour of their own.
pub(super) const MOST_SERIES: usize = 8;

/// Points of a series that are drawn.
const MOST_POINTS: usize = 500;

/// The drawing in units of its own, and the room around the axes.
const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 340.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 36.0;
const TOP: f64 = 28.0;
const BOTTOM: f64 = 46.0;

/// A chart.
#[derive(Debug)]
pub(super) struct Chart {
    /// Of the page's, no other element has it.
    pub(super) id: String,
    pub(super) title: String,
    /// Whether the title stands above it; not where the heading of the section says the same.
    pub(super) is_titled: bool,
    /// What is to be seen, for those who do not see it.
    pub(super) description: String,
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) series: Vec<Series>,
    /// Lines without colour that tie points together, and their names.
    pub(super) ties: Vec<Tie>,
    /// What dashes and rings mean, where there are any.
    pub(super) keys: Vec<Key>,
}

/// An axis with its name.
#[derive(Debug)]
pub(super) struct Axis {
    pub(super) name: &'static str,
    pub(super) scale: Scale,
}

/// What has one colour and one marker.
#[derive(Debug)]
pub(super) struct Series {
    pub(super) name: String,
    pub(super) lines: Vec<Line>,
}

/// Points of one series.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) points: Vec<Point>,
    pub(super) joined: bool,
    pub(super) dashed: bool,
    pub(super) marks: Marks,
}

/// How points are marked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Marks {
    Filled,
    Hollow,
    /// Only every so many, and the last; the others show themselves where one points at them.
    Every(usize),
}

/// A point and what is said where one points at it.
#[derive(Debug, Clone)]
pub(super) struct Point {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) title: String,
    pub(super) ringed: bool,
}

/// Points of different series that belong together.
#[derive(Debug)]
pub(super) struct Tie {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
}

/// What a mark that has no series means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Solid(&'static str),
    Dashed(&'static str),
    Ring(&'static str),
    Tie(&'static str),
}

impl Chart {
    /// The legend and the drawing.
    pub(super) fn markup(&self) -> Markup {
        html! {
            figure.chart {
                @if self.is_titled { figcaption { (self.title) } }
                (self.legend())
                svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } role="img"
                    aria-labelledby={ (self.id) "-t " (self.id) "-d" } {
                    title id={ (self.id) "-t" } { (self.title) }
                    desc id={ (self.id) "-d" } { (self.description) }
                    (self.axes())
                    @for tie in &self.ties {
                        polyline.tie points=(self.path(tie.points.iter().copied())) {}
                    }
                    @for (slot, series) in self.drawn() {
                        g class={ "s" (slot) } { (self.lines(slot, series)) }
                    }
                    (self.names_of_ties())
                }
            }
        }
    }

    fn drawn(&self) -> impl Iterator<Item = (usize, &Series)> {
        self.series.iter().take(MOST_SERIES).enumerate()
    }

    fn legend(&self) -> Markup {
        let swatch = |content: Markup| {
            html! { svg viewBox="0 0 28 14" aria-hidden="true" { (content) } }
        };
        let line = |class: &str| html! { line class=(class) x1="1" y1="7" x2="27" y2="7" {} };
        html! {
            ul.legend {
                @for (slot, series) in self.drawn() {
                    li class={ "s" (slot) } {
                        (swatch(html! { (line("line")) (marker(slot, 14.0, 7.0, "mark", "")) }))
                        span { (series.name) }
                    }
                }
                @for key in &self.keys {
                    li.key {
                        @match key {
                            Key::Solid(name) => { (swatch(line("line"))) span { (name) } }
                            Key::Dashed(name) => { (swatch(line("line dashed"))) span { (name) } }
                            Key::Tie(name) => { (swatch(line("tie"))) span { (name) } }
                            Key::Ring(name) => {
                                (swatch(html! { circle.ring cx="14" cy="7" r="6" {} }))
                                span { (name) }
                            }
                        }
                    }
                }
            }
            @if self.series.len() > MOST_SERIES {
                p.note {
                    "The first " (MOST_SERIES) " of " (self.series.len())
                    " series are drawn. The table has them all."
                }
            }
        }
    }

    fn axes(&self) -> Markup {
        let bottom = HEIGHT - BOTTOM;
        html! {
            g.axis {
                @for (share, label) in self.y.scale.ticks() {
                    @let at = down(share);
                    line.grid x1=(LEFT) y1=(px(at)) x2=(WIDTH - RIGHT) y2=(px(at)) {}
                    text x=(LEFT - 8.0) y=(px(at + 4.0)) text-anchor="end" { (label) }
                }
                @for (share, label) in self.x.scale.ticks() {
                    @let at = across(share);
                    line.grid x1=(px(at)) y1=(TOP) x2=(px(at)) y2=(bottom) {}
                    text x=(px(at)) y=(bottom + 18.0) text-anchor="middle" { (label) }
                }
                line.edge x1=(LEFT) y1=(bottom) x2=(WIDTH - RIGHT) y2=(bottom) {}
                text.name x="4" y="14" { (self.y.name) }
                text.name x=(WIDTH - RIGHT) y=(HEIGHT - 8.0) text-anchor="end" { (self.x.name) }
            }
        }
    }

    fn lines(&self, slot: usize, series: &Series) -> Markup {
        let shown = |line: &Line| line.points.len().min(MOST_POINTS);
        html! {
            @for line in &series.lines {
                @let points = &line.points[..shown(line)];
                @if line.joined {
                    polyline class=(if line.dashed { "line dashed" } else { "line" })
                        points=(self.path(points.iter().map(|point| (point.x, point.y)))) {}
                }
            }
            // Above the lines of the series.
            @for line in &series.lines {
                @let last = shown(line).saturating_sub(1);
                @for (index, point) in line.points[..shown(line)].iter().enumerate() {
                    @let (x, y) = self.place(point.x, point.y);
                    @if point.ringed {
                        circle.ring cx=(px(x)) cy=(px(y)) r="9" {}
                    }
                    @let class = match line.marks {
                        Marks::Filled => "mark",
                        Marks::Hollow => "mark hollow",
                        Marks::Every(stride) if index.is_multiple_of(stride) || index == last => "mark",
                        Marks::Every(_) => "mark hidden",
                    };
                    (marker(slot, x, y, class, &point.title))
                }
            }
        }
    }

    /// To the right of where each tie ends, moved apart where they would cover each other.
    fn names_of_ties(&self) -> Markup {
        const LINE: f64 = 13.0;
        let mut names: Vec<(f64, f64, &str)> = (self.ties.iter())
            .filter_map(|tie| {
                let places = tie.points.iter().map(|&(x, y)| self.place(x, y));
                let (x, y) = places.max_by(|a, b| a.0.total_cmp(&b.0))?;
                Some((x, y, tie.name.as_str()))
            })
            .collect();
        names.sort_by(|a, b| a.1.total_cmp(&b.1));
        let mut least = TOP;
        for (_, y, _) in &mut names {
            *y = y.max(least);
            least = *y + LINE;
        }
        html! {
            g.axis {
                @for (x, y, name) in names {
                    @let name = clipped(name, 24);
                    // Where the room to the right is short, to the left.
                    @let is_right = x + 16.0 + 7.0 * name.chars().count() as f64 > WIDTH;
                    text.tied x=(px(if is_right { x - 10.0 } else { x + 10.0 })) y=(px(y + 4.0))
                        text-anchor=(if is_right { "end" } else { "start" }) {
                        (name)
                    }
                }
            }
        }
    }

    fn place(&self, x: f64, y: f64) -> (f64, f64) {
        (across(self.x.scale.share(x)), down(self.y.scale.share(y)))
    }

    fn path(&self, points: impl Iterator<Item = (f64, f64)>) -> String {
        let places = points.map(|(x, y)| {
            let (x, y) = self.place(x, y);
            format!("{},{}", px(x), px(y))
        });
        places.collect::<Vec<_>>().join(" ")
    }
}

fn across(share: f64) -> f64 {
    LEFT + share * (WIDTH - LEFT - RIGHT)
}

fn down(share: f64) -> f64 {
    HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)
}

/// A place with one decimal, which is finer than a screen.
pub(super) fn px(place: f64) -> String {
    format!("{place:.1}")
}

/// The first `most` characters of `text`.
pub(super) fn clipped(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// The marker of series `slot`: by its shape too, for those who do not tell its colour from others.
fn marker(slot: usize, x: f64, y: f64, class: &str, title: &str) -> Markup {
    // Corners around a middle, scaled to about the same area.
    let corners: &[(f64, f64)] = match slot {
        1 => &[(-3.6, -3.6), (3.6, -3.6), (3.6, 3.6), (-3.6, 3.6)],
        2 => &[(0.0, -4.8), (4.6, 3.4), (-4.6, 3.4)],
        3 => &[(0.0, -5.2), (5.2, 0.0), (0.0, 5.2), (-5.2, 0.0)],
        4 => &[(0.0, 4.8), (4.6, -3.4), (-4.6, -3.4)],
        5 => &[(-5.2, -2.4), (5.2, -2.4), (5.2, 2.4), (-5.2, 2.4)],
        6 => &[(-2.4, -5.2), (2.4, -5.2), (2.4, 5.2), (-2.4, 5.2)],
        7 => &[(-4.8, 0.0), (3.4, -4.6), (3.4, 4.6)],
        _ => &[],
    };
    let title = html! { @if !title.is_empty() { title { (title) } } };
    if corners.is_empty() {
        return html! { circle class=(class) cx=(px(x)) cy=(px(y)) r="4" { (title) } };
    }
    let points: Vec<String> =
        corners.iter().map(|(dx, dy)| format!("{},{}", px(x + dx), px(y + dy))).collect();
    html! { polygon class=(class) points=(points.join(" ")) { (title) } }
}

/// A page's style as it stands in a file.
pub(super) const STYLE: PreEscaped<&str> = PreEscaped(include_str!("style.css"));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::number::Unit;

    fn chart(points: usize, series: usize) -> Chart {
        let point = |number: usize| Point {
            x: number as f64,
            y: 1e3 * number as f64,
            title: "<here> & there".to_owned(),
            ringed: number == 1,
        };
        let line = || Line {
            points: (0..points).map(point).collect(),
            joined: true,
            dashed: false,
            marks: Marks::Filled,
        };
        let named = |number| Series { name: format!("s{number}"), lines: vec![line()] };
        Chart {
            id: "c".to_owned(),
            title: "<Title>".to_owned(),
            is_titled: true,
            description: "says what".to_owned(),
            x: Axis { name: "x", scale: Scale::from_zero([points as f64], Unit::Count) },
            y: Axis { name: "y", scale: Scale::decades([1e3, 1e6], Unit::Nanos) },
            series: (0..series).map(named).collect(),
            ties: vec![Tie { name: "tied".to_owned(), points: vec![(1.0, 1e3), (2.0, 2e3)] }],
            keys: vec![Key::Ring("late")],
        }
    }

    #[test]
    fn a_chart_is_well_formed_and_says_what_it_is() {
        let markup = chart(5, 8).markup().into_string();
        let document = roxmltree::Document::parse(&markup).unwrap();
        let count =
            |name: &str| document.descendants().filter(|node| node.has_tag_name(name)).count();
        // The ring in the legend, and one for each series.
        assert_eq!(markup.matches("class=\"ring\"").count(), 1 + 8);
        assert_eq!(count("desc"), 1);
        assert!(count("polyline") == 8 + 1 && markup.contains("&lt;here&gt; &amp; there"));
        assert!(document.descendants().any(|node| node.text() == Some("<Title>")));
    }

    #[test]
    fn what_is_too_much_is_left_out_and_said() {
        let markup = chart(100_000, 20).markup().into_string();
        assert!(markup.len() < 1 << 20, "{}", markup.len());
        assert!(markup.contains("The first 8 of 20 series"));
        assert!(!chart(5, 8).markup().into_string().contains("series are drawn"));
    }
}
