//! The tables of `docs/DIFFERENCES.md`, held against what came out.

use super::lines::Lines;

/// One table: for each case that differs what one gives, what the other gives, and why.
#[derive(Debug, Default)]
pub struct Table(Vec<Row>);

#[derive(Debug, PartialEq, Eq)]
struct Row {
    case: String,
    one: String,
    other: String,
    why: String,
}

impl Table {
    /// Reads the table below the heading that begins with `heading`.
    pub fn read(document: &str, heading: &str) -> Self {
        let mut lines = document.lines();
        let found =
            lines.any(|line| line.strip_prefix("## ").is_some_and(|is| is.starts_with(heading)));
        assert!(found, "no heading {heading:?}");
        let rows = lines.take_while(|line| !line.starts_with("## ")).filter_map(Row::read);
        Table(rows.collect())
    }

    /// The same with the rows of another, where both have the case.
    pub fn overlaid(mut self, other: Table) -> Self {
        self.0.retain(|row| other.0.iter().all(|over| over.case != row.case));
        self.0.extend(other.0);
        self
    }
}

impl Row {
    /// A row of a table of cases: its first cell is code.
    fn read(line: &str) -> Option<Self> {
        let mut cells = line.strip_prefix("| `")?.strip_suffix(" |")?.split(" | ");
        let mut cell = || Some(cells.next()?.trim_matches('`').to_owned());
        let row = Row { case: cell()?, one: cell()?, other: cell()?, why: cell()? };
        assert!(cells.next().is_none(), "five cells: {line}");
        assert!(!row.why.is_empty(), "no reason: {line}");
        Some(row)
    }
}

/// What is wrong with `table` as the list of the differences between these lines; the row that ought to be
/// there comes with it.
pub fn unlisted(one: &Lines, other: &Lines, table: &Table) -> Vec<String> {
    let mut problems = Vec::new();
    for (case, result) in other.iter() {
        let rows: Vec<_> = table.0.iter().filter(|row| row.case == case).collect();
        let Some(expected) = one.result(case) else {
            problems.push(format!("not known: {case} | {result}"));
            continue;
        };
        let row = format!("| `{case}` | `{expected}` | `{result}` |");
        match (&rows[..], expected == result) {
            ([], true) => {}
            ([], false) => problems.push(format!("not listed: {row}")),
            ([_], true) => problems.push(format!("listed, and no difference: {row}")),
            ([listed], false) if listed.one == expected && listed.other == result => {}
            ([_], false) => problems.push(format!("listed as something else: {row}")),
            (_, _) => problems.push(format!("listed twice: {case}")),
        }
    }
    for (case, _) in one.iter().filter(|(case, _)| other.result(case).is_none()) {
        problems.push(format!("not run: {case}"));
    }
    for row in table.0.iter().filter(|row| other.result(&row.case).is_none()) {
        problems.push(format!("listed, and no case: {}", row.case));
    }
    problems
}

/// A list that is wrong in any way is found to be.
#[test]
fn a_wrong_list_is_noticed() {
    let one = Lines::read("a | 1\nb | 2\nc | 3\n");
    let other = Lines::read("# other\na | 1\nb   | 5\nc | 3\n");
    let table =
        |rows: &str| Table::read(&format!("# T\n## X\n{rows}\n## Y\n| `z` | 1 | 2 | w |\n"), "X");
    let good = "| case | one | other | why |\n|---|---|---|---|\n| `b` | `2` | `5` | so |";
    assert_eq!(unlisted(&one, &other, &table(good)), Vec::<String>::new());
    for (rows, problem) in [
        ("", "not listed: | `b` | `2` | `5` |"),
        ("| `b` | `2` | `4` | so |", "listed as something else"),
        ("| `b` | `3` | `5` | so |", "listed as something else"),
        ("| `b` | `2` | `5` | so |\n| `a` | `1` | `2` | so |", "listed, and no difference"),
        ("| `b` | `2` | `5` | so |\n| `b` | `2` | `5` | so |", "listed twice"),
        ("| `b` | `2` | `5` | so |\n| `d` | `2` | `5` | so |", "listed, and no case: d"),
    ] {
        let problems = unlisted(&one, &other, &table(rows));
        assert!(problems.len() == 1 && problems[0].starts_with(problem), "{rows}: {problems:?}");
    }
    let less = unlisted(&one, &Lines::read("a | 1\n"), &table(""));
    assert_eq!(less, ["not run: b", "not run: c"]);
    let over = table("| `b` | `3` | `5` | so |").overlaid(table(good));
    assert_eq!(unlisted(&one, &other, &over), Vec::<String>::new());
    let more = unlisted(&Lines::read("a | 1\n"), &Lines::read("a | 1\nb | 2\n"), &table(""));
    assert_eq!(more, ["not known: b | 2"]);
}
