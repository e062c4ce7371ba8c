//! Which jobs are points of one line.

use std::collections::{BTreeMap, BTreeSet};

use vfio_ccw_load::units::Bytes;

use crate::run::JobRecord;

/// A job and where it is from.
#[derive(Debug, Clone)]
pub(super) struct Job<'a> {
    /// The file.
    pub(super) file: &'a str,
    /// Its name, with the file where another file has the same name.
    pub(super) label: String,
    pub(super) record: &'a JobRecord,
}

/// Jobs of one line, by where they are on the horizontal axis.
#[derive(Debug)]
pub(super) struct Group<'j, 'a> {
    /// In what it differs from the other lines.
    pub(super) name: String,
    pub(super) jobs: Vec<&'j Job<'a>>,
    /// Whether each is at another place, so that a line through them says something.
    pub(super) is_line: bool,
}

/// Sorts `jobs` into lines. Jobs of one line have everything in common but their `place`.
///
/// Budgets and files tell jobs apart only where some are else at the same place. A budget that nobody
/// gave follows the size of the guest, and so the number of subchannels; files whose jobs are at
/// different places are parts of one sweep, and others are runs of the same thing.
pub(super) fn groups<'j, 'a>(
    jobs: &[&'j Job<'a>],
    place: fn(&JobRecord) -> f64,
    with_subchannels: bool,
) -> Vec<Group<'j, 'a>> {
    let mut keys_of: Vec<Vec<String>> =
        jobs.iter().map(|job| facets(job.record, with_subchannels)).collect();
    for further in [budget, file] {
        let further: Vec<String> = jobs.iter().map(|job| further(job)).collect();
        let mut order: Vec<usize> = (0..jobs.len()).collect();
        let places = |a: usize, b: usize| place(jobs[a].record).total_cmp(&place(jobs[b].record));
        order.sort_by(|&a, &b| {
            keys_of[a].cmp(&keys_of[b]).then(places(a, b)).then(further[a].cmp(&further[b]))
        });
        let tells_apart = order.windows(2).any(|pair| {
            let (a, b) = (pair[0], pair[1]);
            keys_of[a] == keys_of[b] && places(a, b).is_eq() && further[a] != further[b]
        });
        if tells_apart {
            keys_of.iter_mut().zip(further).for_each(|(key, further)| key.push(further));
        }
    }
    // In the order in which the first of each was given.
    let mut distinct: Vec<&Vec<String>> = Vec::new();
    let mut seen = BTreeSet::new();
    for key in &keys_of {
        if seen.insert(key) {
            distinct.push(key);
        }
    }
    let names = names(&distinct);
    let mut groups: Vec<Group> =
        (names.into_iter()).map(|name| Group { name, jobs: Vec::new(), is_line: true }).collect();
    let number_of: BTreeMap<_, _> =
        distinct.iter().enumerate().map(|(number, key)| (*key, number)).collect();
    for (job, key) in jobs.iter().zip(&keys_of) {
        groups[number_of[key]].jobs.push(job);
    }
    for group in &mut groups {
        group.jobs.sort_by(|a, b| place(a.record).total_cmp(&place(b.record)));
        group.is_line =
            (group.jobs.windows(2)).all(|pair| place(pair[0].record) != place(pair[1].record));
    }
    groups
}

fn budget(job: &Job) -> String {
    job.record.budget_bytes.map_or_else(String::new, |bytes| format!("budget {}", Bytes(bytes)))
}

fn file(job: &Job) -> String {
    job.file.to_owned()
}

/// What a job is apart from its place, the most telling first. Empty: it has no such thing.
fn facets(record: &JobRecord, with_subchannels: bool) -> Vec<String> {
    let given = |text: &Option<String>| text.clone().unwrap_or_default();
    let named = |name: &str, text: &Option<String>| {
        text.as_ref().map_or_else(String::new, |text| format!("{name} {text}"))
    };
    let plural = |number: u32, what: &str| match number {
        1 => format!("1 {what}"),
        _ => format!("{number} {what}s"),
    };
    vec![
        record.engine.clone(),
        given(&record.mode),
        record.program.clone(),
        if with_subchannels { plural(record.subchannels, "subchannel") } else { String::new() },
        plural(record.guests, "guest"),
        Bytes(record.block_bytes.into()).to_string(),
        format!("{} % reads", record.read_percent),
        given(&record.access),
        named("wait", &record.wait),
        given(&record.driver),
        given(&record.pinner),
    ]
}

/// Names of lines: of the facets, those that tell one line from another.
fn names(keys: &[&Vec<String>]) -> Vec<String> {
    let facets = keys.first().map_or(0, |key| key.len());
    let told_apart = |by: &[usize]| {
        let parts = |key: &&Vec<String>| by.iter().map(|&at| key[at].clone()).collect::<Vec<_>>();
        keys.iter().map(parts).collect::<BTreeSet<_>>().len()
    };
    let mut telling: Vec<usize> = Vec::new();
    for facet in 0..facets {
        let before = told_apart(&telling);
        telling.push(facet);
        if told_apart(&telling) == before {
            telling.pop();
        }
    }
    if telling.is_empty() {
        // One line: the engine and the mode say enough.
        telling = vec![0, 1];
    }
    let name = |key: &&Vec<String>| {
        let parts = telling.iter().map(|&at| key[at].as_str()).filter(|part| !part.is_empty());
        parts.collect::<Vec<_>>().join(", ")
    };
    keys.iter().map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    fn job<'a>(file: &'a str, record: &'a JobRecord) -> Job<'a> {
        Job { file, label: record.name.clone(), record }
    }

    fn subchannels(record: &JobRecord) -> f64 {
        record.subchannels.into()
    }

    fn record(subchannels: u32, mode: &str) -> JobRecord {
        JobRecord { subchannels, mode: Some(mode.to_owned()), ..sample::job("j") }
    }

    fn shown(jobs: &[Job]) -> Vec<(String, Vec<u32>, bool)> {
        let jobs: Vec<&Job> = jobs.iter().collect();
        let groups = groups(&jobs, subchannels, false);
        let numbers = |group: &Group| group.jobs.iter().map(|job| job.record.subchannels).collect();
        groups.iter().map(|group| (group.name.clone(), numbers(group), group.is_line)).collect()
    }

    #[test]
    fn lines_are_named_by_what_tells_them_apart() {
        let records =
            [record(8, "cached"), record(1, "cached"), record(1, "pinned"), record(8, "pinned")];
        let jobs = records.each_ref().map(|record| job("a.json", record));
        let expected = |name: &str| (name.to_owned(), vec![1, 8], true);
        assert_eq!(shown(&jobs), [expected("cached"), expected("pinned")]);
        assert_eq!(shown(&jobs[..2]), [expected("inprocess, cached")]);
        let other = JobRecord { block_bytes: 65536, ..record(4, "pinned") };
        let with_other = [jobs.as_slice(), &[job("a.json", &other)]].concat();
        let names: Vec<String> = shown(&with_other).into_iter().map(|(name, ..)| name).collect();
        assert_eq!(names, ["cached, 4 KiB", "pinned, 4 KiB", "pinned, 64 KiB"]);
        assert!(shown(&[]).is_empty());
    }

    #[test]
    fn files_and_budgets_are_told_apart_where_they_are_at_the_same_place() {
        let (one, eight) = (record(1, "cached"), record(8, "cached"));
        let sweep = [job("a.json", &one), job("b.json", &eight)];
        assert_eq!(shown(&sweep), [("inprocess, cached".to_owned(), vec![1, 8], true)]);
        let runs = [job("a.json", &one), job("b.json", &one), job("b.json", &eight)];
        assert_eq!(
            shown(&runs),
            [("a.json".to_owned(), vec![1], true), ("b.json".to_owned(), vec![1, 8], true)]
        );
        let larger = JobRecord { budget_bytes: Some(1 << 30), ..eight.clone() };
        let by_default = [job("a.json", &one), job("a.json", &larger)];
        assert_eq!(shown(&by_default), [("inprocess, cached".to_owned(), vec![1, 8], true)]);
        let by_choice = [job("a.json", &eight), job("a.json", &larger)];
        let names: Vec<String> = shown(&by_choice).into_iter().map(|(name, ..)| name).collect();
        assert_eq!(names, ["budget 64 MiB", "budget 1 GiB"]);
        let twice = [job("a.json", &one), job("a.json", &one)];
        assert!(!shown(&twice)[0].2, "nothing says in which order they belong");
    }
}
