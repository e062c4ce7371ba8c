//! The page around its sections.

use std::collections::BTreeMap;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::chart::STYLE;
use super::read::{Content, Source};
use super::section::{compare, distribution, footprint, jobs, latency, ratios, stages, throughput};
use super::series::Job;

/// Jobs that are looked at; more than fit into a page that can be read.
const MOST_JOBS: usize = 5000;

/// Empty elements that end as XML asks: so the whole page can be checked for being well formed.
const META: PreEscaped<&str> = PreEscaped(concat!(
    r#"<meta charset="utf-8"/>"#,
    r#"<meta name="viewport" content="width=device-width, initial-scale=1"/>"#,
    r#"<meta name="color-scheme" content="light dark"/>"#,
    // Nothing is loaded and nothing runs, whatever a name in a file tries.
    r#"<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'"/>"#,
));

/// The page of `sources` under the heading `title`.
pub fn page(title: &str, sources: &[Source]) -> String {
    let all = jobs_of(sources);
    let left_out = all.len().saturating_sub(MOST_JOBS);
    let shown = &all[..all.len() - left_out];
    let sections = [
        jobs::markup(shown, left_out),
        stages::markup(shown),
        latency::markup(shown),
        throughput::markup(shown),
        footprint::markup(shown, sources),
        distribution::markup(shown),
        compare::markup(sources),
        ratios::markup(sources),
    ];
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                (META)
                title { (title) }
                style { (STYLE) }
            }
            body {
                header {
                    h1 { (title) }
                    (jobs::provenance(sources))
                }
                main {
                    @for section in sections.iter().flatten() { (section) }
                }
                footer {
                    p { "Made by vfio-ccw-bench " (env!("CARGO_PKG_VERSION")) "." }
                }
            }
        }
    };
    without_controls(&page.into_string())
}

/// A section with its heading and how it is read.
pub(super) fn section(id: &str, heading: &str, how: &Markup, content: &Markup) -> Markup {
    html! {
        section id=(id) aria-labelledby={ (id) "-h" } {
            h2 id={ (id) "-h" } { (heading) }
            p.how { (how) }
            (content)
        }
    }
}

/// All jobs of all files. Where files have jobs of the same name, the name of the file is added.
fn jobs_of(sources: &[Source]) -> Vec<Job<'_>> {
    let mut files_of: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    let mut jobs = Vec::new();
    for (number, source) in sources.iter().enumerate() {
        let Content::Load(run) = &source.content else { continue };
        for record in &run.jobs {
            let files = files_of.entry(&record.name).or_default();
            if files.last() != Some(&number) {
                files.push(number);
            }
            jobs.push(Job { file: &source.name, label: record.name.clone(), record });
        }
    }
    for job in &mut jobs {
        if files_of.get(job.record.name.as_str()).is_some_and(|files| files.len() > 1) {
            job.label = format!("{} ({})", job.record.name, job.file);
        }
    }
    jobs
}

/// `page` without characters that have no place in a page, or turn the direction of what follows them.
fn without_controls(page: &str) -> String {
    let is_wrong = |c: char| {
        (c.is_control() && c != '\n')
            || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{fffe}' | '\u{ffff}')
    };
    page.chars().map(|c| if is_wrong(c) { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;
    use crate::run::JobRecord;
    use proptest::prelude::*;
    use roxmltree::{Document, ParsingOptions};
    use vfio_ccw_load::StageRow;

    const SECTIONS: [&str; 8] = [
        "jobs",
        "stages",
        "latency",
        "throughput",
        "footprint",
        "distribution",
        "compare",
        "ratios",
    ];

    fn document(page: &str) -> Document<'_> {
        let options = ParsingOptions { allow_dtd: true, ..ParsingOptions::default() };
        Document::parse_with_options(page, options).expect("a well-formed page")
    }

    /// The sections of a page that is well formed, and in which all ids are there once and all
    /// references have one.
    fn sections(page: &str) -> Vec<String> {
        let document = document(page);
        let ids: Vec<&str> =
            document.descendants().filter_map(|node| node.attribute("id")).collect();
        let mut distinct = ids.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), ids.len(), "{ids:?}");
        for named in document.descendants().filter_map(|node| node.attribute("aria-labelledby")) {
            assert!(named.split(' ').all(|id| ids.contains(&id)), "{named}");
        }
        let sections = document.descendants().filter(|node| node.has_tag_name("section"));
        sections.filter_map(|node| node.attribute("id").map(str::to_owned)).collect()
    }

    fn loaded(name: &str, jobs: Vec<JobRecord>) -> Source {
        Source { name: name.to_owned(), content: Content::Load(sample::load(jobs)) }
    }

    fn parsed(name: &str, json: &str) -> Source {
        Source::parse(name, json.as_bytes()).unwrap()
    }

    fn sections_of(jobs: Vec<JobRecord>) -> Vec<String> {
        sections(&page("t", &[loaded("run.json", jobs)]))
    }

    #[test]
    fn sections_are_there_where_their_data_is() {
        let bare = || JobRecord { buckets: Vec::new(), ..sample::baseline("b") };
        assert_eq!(sections_of(Vec::new()), [""; 0]);
        assert_eq!(sections_of(vec![bare()]), ["jobs"]);
        assert_eq!(sections_of(vec![sample::baseline("b")]), ["jobs", "distribution"]);
        let with_stages = JobRecord { stages: vec![sample::stage("total", 9)], ..bare() };
        assert_eq!(sections_of(vec![with_stages]), ["jobs", "stages"]);
        let with_rate = JobRecord { rate_iops: Some(5.0), ..bare() };
        assert_eq!(sections_of(vec![with_rate]), ["jobs", "latency"]);
        let deeper = JobRecord { subchannels: 16, ..bare() };
        assert_eq!(sections_of(vec![bare(), deeper.clone()]), ["jobs", "throughput"]);
        let deeper_too = JobRecord { block_bytes: 512, ..deeper };
        assert_eq!(sections_of(vec![bare(), deeper_too]), ["jobs"], "they differ in more");
        let pinned =
            JobRecord { mode: Some("pinned".into()), pinned_peak_bytes: Some(9), ..bare() };
        assert_eq!(sections_of(vec![pinned]), ["jobs", "footprint"]);
        let of = |json: String| sections(&page("t", &[parsed("f", &json)]));
        assert_eq!(of(sample::modes_json()), ["footprint"]);
        assert_eq!(of(sample::compare_json()), ["compare"]);
        assert_eq!(of(sample::ratios_json()), ["ratios"]);
    }

    #[test]
    fn all_kinds_of_files_go_into_one_page() {
        let mut jobs = vec![sample::job("closed"), sample::by_the_clock("open", 5e4)];
        jobs.push(JobRecord { subchannels: 64, ..sample::job("deep") });
        let sources = [
            loaded("run.json", jobs),
            parsed("modes.json", &sample::modes_json()),
            parsed("ab.json", &sample::compare_json()),
            parsed("ratios.json", &sample::ratios_json()),
        ];
        let page = page("All", &sources);
        assert_eq!(sections(&page), SECTIONS);
        for shown in [
            "4 x Model 7, 16 GiB, Linux 6.12.0, s390x",
            "2026-01-31T23:59:59Z",
            "no difference shown",
            "misses",
            "1 of 3 hold",
            "15 rounds, 99 % intervals",
        ] {
            assert!(page.contains(shown), "{shown}");
        }
        // Nothing from elsewhere, and nothing that runs.
        for absent in ["http://", "https://", "<script", "<link", "@import", "url(", "javascript:"]
        {
            assert!(!page.contains(absent), "{absent}");
        }
        assert!(page.contains("default-src 'none'"));
    }

    #[test]
    fn a_job_that_is_not_clean_is_marked() {
        let clean = page("t", &[loaded("a", vec![sample::job("fine")])]);
        assert!(!clean.contains("NOT CLEAN") && clean.contains("700k reads compared"));
        let bad = JobRecord { lost: 3, miscompares: 2, stopped: true, ..sample::job("bad") };
        let page = page("t", &[loaded("a", vec![sample::job("fine"), bad])]);
        assert!(page.contains("NOT CLEAN: 2 wrong, 3 lost") && page.contains("stopped early"));
        assert!(page.contains("1 of 2 jobs is not clean"));
    }

    #[test]
    fn late_jobs_have_a_ring() {
        // One of two guests has made up for the other, as far as the sum goes.
        let due = sample::by_the_clock("late", 9e5);
        let late = JobRecord { guests: 2, iops: 1.8e6, slowest_iops: 7e5, ..due };
        let jobs = vec![sample::by_the_clock("kept", 1e5), late];
        let marked = page("t", &[loaded("a", jobs.clone())]);
        // One of the legend, one of the point.
        assert_eq!(marked.matches("<circle class=\"ring\"").count(), 2);
        assert!(
            marked.contains("not kept</td>")
                && marked.contains("<strong class=\"bad\">rate not kept")
        );
        let kept = page("t", &[loaded("a", jobs[..1].to_vec())]);
        assert!(!kept.contains("rate not kept"));
    }

    #[test]
    fn jobs_of_one_name_are_told_apart_by_their_files() {
        let other = crate::run::LoadRun {
            machine: crate::machine::Machine { processors: 8, ..sample::machine() },
            ..sample::load(vec![sample::job("j")])
        };
        let sources = [
            loaded("before.json", vec![sample::job("j"), sample::job("alone")]),
            Source { name: "after.json".to_owned(), content: Content::Load(other) },
        ];
        let page = page("t", &sources);
        assert!(page.contains("j (before.json)") && page.contains("j (after.json)"));
        assert!(!page.contains("alone (before.json)"));
        assert!(page.contains("2 different machines"));
    }

    #[test]
    fn hostile_names_are_text() {
        const EVIL: &str = "\"'><script>alert(1)</script>&<!--]]>\u{0}\u{1b}\u{202e}\u{ffff}";
        let evil = || EVIL.to_owned();
        let job = |rate| JobRecord {
            engine: evil(),
            program: evil(),
            mode: Some(evil()),
            wait: Some(evil()),
            driver: Some(evil()),
            pinner: Some(evil()),
            latency: StageRow { name: evil(), ..sample::stage("x", 5) },
            stages: vec![sample::stage(EVIL, 5)],
            rate_iops: rate,
            ..sample::job(EVIL)
        };
        let mut run = sample::load(vec![job(None), job(Some(3.0))]);
        run.jobs.push(JobRecord { subchannels: 99, ..job(None) });
        (run.version, run.date) = (evil(), evil());
        (run.machine.model, run.machine.kernel, run.machine.governor) =
            (evil(), evil(), Some(evil()));
        let mut compared = sample::compare();
        for row in &mut compared.rows {
            (row.base, row.other, row.measure) = (evil(), evil(), evil());
        }
        let mut ratios = parsed(EVIL, &sample::ratios_json());
        if let Content::Ratios(rows) = &mut ratios.content {
            rows.iter_mut().for_each(|row| (row.name, row.figure.target) = (evil(), evil()));
        }
        let mut modes = parsed(EVIL, &sample::modes_json());
        if let Content::Modes(run) = &mut modes.content {
            for workload in &mut run.workloads {
                workload.access = evil();
                workload.modes.iter_mut().for_each(|row| row.mode = evil());
            }
        }
        let sources = [
            Source { name: evil(), content: Content::Load(run) },
            Source { name: evil(), content: Content::Compare(compared) },
            ratios,
            modes,
        ];
        let page = page(EVIL, &sources);
        assert_eq!(sections(&page), SECTIONS);
        assert!(!page.contains("<script") && !page.contains("<!--") && page.contains("&lt;script"));
        assert!(document(&page).descendants().all(|node| !node.has_tag_name("script")));
        let wrong = ['\u{0}', '\u{1b}', '\u{202e}', '\u{ffff}'];
        assert!(!page.contains(wrong));
        // The heading is what was given, but for those.
        let document = document(&page);
        let heading = document.descendants().find(|node| node.has_tag_name("h1")).unwrap();
        assert_eq!(heading.text(), Some(EVIL.replace(wrong, "\u{fffd}").as_str()));
    }

    #[test]
    fn ten_thousand_jobs_make_a_page_that_can_be_opened() {
        let job = |number: u32| JobRecord {
            subchannels: number,
            rate_iops: number.is_multiple_of(2).then_some(number.into()),
            mode: Some(format!("m{}", number % 300)),
            ..sample::job(&format!("job {number}"))
        };
        let page = page("t", &[loaded("run.json", (0..10_000).map(job).collect())]);
        assert!(page.len() < 4 << 20, "{} bytes", page.len());
        assert_eq!(sections(&page).len(), 6);
        assert!(page.contains("5000 jobs more are left out of the whole page"));
        assert!(page.contains("The first 12 of 5000 jobs are drawn"));
    }

    fn number() -> impl Strategy<Value = u64> {
        prop_oneof![Just(0), Just(1), Just(u64::MAX), any::<u64>(), 0..1_000_000u64]
    }

    /// Any that JSON can say.
    fn real() -> impl Strategy<Value = f64> {
        prop_oneof![
            Just(0.0),
            Just(-0.0),
            Just(-1.0),
            Just(f64::MAX),
            Just(f64::MIN),
            Just(f64::MIN_POSITIVE),
            0.0..1e6f64,
            prop::num::f64::NORMAL | prop::num::f64::SUBNORMAL
        ]
    }

    fn word() -> impl Strategy<Value = String> {
        prop_oneof!["[a-c]", any::<String>()]
    }

    prop_compose! {
        fn stage()(name in word(), values in prop::array::uniform6(number()))
            -> StageRow {
            let [count, p50_ns, p90_ns, p99_ns, p999_ns, max_ns] = values;
            StageRow { name, count, p50_ns, p90_ns, p99_ns, p999_ns, max_ns }
        }
    }

    prop_compose! {
        fn job()(
            words in prop::array::uniform3(word()),
            options in prop::array::uniform5(prop::option::of(word())),
            sizes in prop::array::uniform3(prop_oneof![Just(0), Just(1), Just(u32::MAX), 0..100u32]),
            read_percent in any::<u8>(),
            rate_iops in prop::option::of(real()),
            reals in prop::array::uniform3(real()),
            hit_rate in prop::option::of(real()),
            numbers in prop::array::uniform10(number()),
            latency in stage(),
            stages in prop::collection::vec(stage(), 0..4),
            buckets in prop::collection::vec((number(), number()), 0..6),
            pinned in prop::array::uniform2(prop::option::of(number())),
            stopped in any::<bool>(),
        ) -> JobRecord {
            let [name, engine, program] = words;
            let [mode, wait, driver, pinner, access] = options;
            let [guests, subchannels, block_bytes] = sizes;
            let [seconds, iops, mib_per_s] = reals;
            let [ios, reads, writes, warm_up, errors, lost, duplicate, checked, miscompares, behind_ns] = numbers;
            let [pinned_peak_bytes, budget_bytes] = pinned;
            JobRecord {
                name, engine, program, mode, wait, driver, pinner, guests, subchannels, block_bytes, read_percent, access,
                rate_iops, seconds, ios, reads, writes, warm_up, iops, slowest_iops: iops / 2.0, mib_per_s, errors, lost,
                duplicate, checked, miscompares, behind_ns, latency, buckets, stages, guest_bytes: ios,
                pinned_peak_bytes, budget_bytes, hit_rate, stopped,
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_jobs_make_a_well_formed_page(
            runs in prop::collection::vec(prop::collection::vec(job(), 0..6), 1..3),
            title in any::<String>(),
        ) {
            let sources: Vec<Source> =
                runs.into_iter().enumerate().map(|(number, jobs)| loaded(&number.to_string(), jobs)).collect();
            let page = page(&title, &sources);
            let shown = sections(&page);
            prop_assert!(shown.iter().all(|section| SECTIONS.contains(&section.as_str())));
            for wrong in ["NaN", "inf\"", "inf,"] {
                let places = document(&page).descendants()
                    .flat_map(|node| node.attributes().map(|attribute| attribute.value().to_owned()).collect::<Vec<_>>())
                    .filter(|value| value.contains(wrong)).count();
                prop_assert_eq!(places, 0, "{}", wrong);
            }
        }
    }
}
