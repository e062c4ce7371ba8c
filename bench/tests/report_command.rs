//! `report` as a user meets it: every kind of file that the other commands write, mistakes, and where
//! the page goes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn bench(arguments: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_vfio-ccw-bench");
    Command::new(program).args(arguments).stdin(Stdio::null()).output().expect("it starts")
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A file with what a command writes to its standard output.
fn results(directory: &Path, name: &str, arguments: &[&str]) -> PathBuf {
    let output = bench(arguments);
    assert!(output.status.success(), "{}", errors(&output));
    let path = directory.join(name);
    fs::write(&path, output.stdout).unwrap();
    path
}

#[test]
fn whatever_the_other_commands_write_goes_into_a_page() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    let jobs = here.join("jobs.fio");
    let sections =
        "[global]\nnumber_ios=200\n[one]\niodepth=1\n[four]\niodepth=4\n[clock]\nrate_iops=2000\n";
    fs::write(&jobs, sections).unwrap();
    let jobs = jobs.to_str().unwrap();
    let files = [
        results(here, "load.json", &["load", jobs, "--quiet", "--json", "-"]),
        results(
            here,
            "compare.json",
            &["compare", jobs, "--rounds", "9", "--number_ios", "20", "--quiet", "--json", "-"],
        ),
        results(
            here,
            "ratios.json",
            &["ratios", "--json", "--rounds", "1", "--only", "ring_spsc_vs_rtrb"],
        ),
        results(
            here,
            "modes.json",
            &["modes", "--json", "--seconds", "0.1", "--rounds", "1", "--access", "uniform"],
        ),
    ];
    let page = here.join("page.html");
    let mut arguments =
        vec!["report", "--title", "Tea & biscuits", "--output", page.to_str().unwrap()];
    arguments.extend(files.iter().map(|file| file.to_str().unwrap()));
    let output = bench(&arguments);
    assert!(output.status.success(), "{}", errors(&output));
    let page = fs::read_to_string(page).unwrap();
    let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
    let document = roxmltree::Document::parse_with_options(&page, options).expect("well formed");
    let sections: Vec<&str> = (document.descendants())
        .filter(|node| node.has_tag_name("section"))
        .filter_map(|node| node.attribute("id"))
        .collect();
    assert_eq!(
        sections,
        [
            "jobs",
            "stages",
            "latency",
            "throughput",
            "footprint",
            "distribution",
            "compare",
            "ratios"
        ]
    );
    assert!(page.contains("<h1>Tea &amp; biscuits</h1>") && page.contains("ring_spsc_vs_rtrb"));
}

#[test]
fn mistakes_are_named_and_leave_no_page() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (other, figures, page) = (path("other.json"), path("figures.json"), path("page.html"));
    fs::write(&other, "{\"weather\": \"fine\"}").unwrap();
    let figure =
        r#"{"a": {"value": 1.0, "low": 1.0, "high": 1.0, "target": "<= 1.0", "holds": true}}"#;
    fs::write(&figures, figure).unwrap();
    let nowhere = path("no/such/place.html");
    for (arguments, said) in [
        (&["report"][..], "RUN.json"),
        (&["report", &path("absent.json"), "--output", &page], "absent.json cannot be read"),
        (&["report", &figures, &other, "--output", &page], "the fields weather"),
        (&["report", "-", "--output", &page], "standard input is not JSON"),
        (&["report", &figures, "--output", &nowhere], "choose another place"),
    ] {
        let output = bench(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(errors(&output).contains(said), "{}", errors(&output));
    }
    assert!(!Path::new(&page).exists());
    let output = bench(&["report", &figures, "--output", "-"]);
    assert!(output.status.success() && output.stdout.starts_with(b"<!DOCTYPE html>"));
}
