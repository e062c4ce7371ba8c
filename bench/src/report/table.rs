//! Tables.

use maud::{Markup, html};

/// Rows of a table that are written: a page with more is of no use to anyone.
pub(super) const MOST_ROWS: usize = 500;

/// A table whose first column says what a row is of.
#[derive(Debug)]
pub(super) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Markup>>,
    left_out: usize,
}

#[derive(Debug)]
struct Column {
    name: &'static str,
    is_number: bool,
}

impl Table {
    /// With `words` first and `numbers` after them, which are set to the right.
    pub(super) fn new(words: &[&'static str], numbers: &[&'static str]) -> Self {
        let column = |is_number| move |&name: &&'static str| Column { name, is_number };
        let columns = words.iter().map(column(false)).chain(numbers.iter().map(column(true)));
        Self { columns: columns.collect(), rows: Vec::new(), left_out: 0 }
    }

    /// Columns of words behind the numbers.
    pub(super) fn and_words(mut self, words: &[&'static str]) -> Self {
        self.columns.extend(words.iter().map(|&name| Column { name, is_number: false }));
        self
    }

    /// One more row, a cell for each column.
    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = Markup>) {
        match self.rows.len() < MOST_ROWS {
            true => self.rows.push(cells.into_iter().collect()),
            false => self.left_out += 1,
        }
    }

    /// The table.
    pub(super) fn markup(&self) -> Markup {
        let class = |column: &Column| column.is_number.then_some("number");
        html! {
            div.wide {
                table {
                    thead {
                        tr {
                            @for column in &self.columns {
                                th scope="col" class=[class(column)] { (column.name) }
                            }
                        }
                    }
                    tbody {
                        @for row in &self.rows {
                            tr {
                                @for (index, (cell, column)) in row.iter().zip(&self.columns).enumerate() {
                                    @if index == 0 {
                                        th scope="row" { (cell) }
                                    } @else {
                                        td class=[class(column)] { (cell) }
                                    }
                                }
                            }
                        }
                    }
                }
            }
            @if self.left_out > 0 {
                p.note {
                    (self.left_out) " more are left out. Give fewer files to see them."
                }
            }
        }
    }

    /// The table behind a chart, to be opened.
    pub(super) fn behind(&self) -> Markup {
        html! {
            details {
                summary { "The same as a table" }
                (self.markup())
            }
        }
    }
}

/// A cell of text.
pub(super) fn cell(text: impl AsRef<str>) -> Markup {
    html! { (text.as_ref()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_a_heading_and_an_end() {
        let mut table = Table::new(&["name"], &["value"]).and_words(&["why"]);
        for number in 0..MOST_ROWS + 3 {
            table.row([cell("<a>"), cell(number.to_string()), cell("so")]);
        }
        let markup = table.behind().into_string();
        assert!(markup.contains("3 more are left out") && markup.contains("&lt;a&gt;"));
        let document = roxmltree::Document::parse(&markup).unwrap();
        let rows = document.descendants().filter(|node| node.attribute("scope") == Some("row"));
        assert_eq!(rows.count(), MOST_ROWS);
    }
}
