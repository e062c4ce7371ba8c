//! The main job and copy-out on disks that `vfio-ccw serve`, another process in its sandbox, has; how that ends,
//! and what it says to what cannot be served.
#![cfg(feature = "cli")]

pub mod command_line;
pub mod confinement;
pub mod serving;

use std::fs;
use std::net::TcpStream;
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use command_line::{Ended, Running, SMALL_JOB, assert_nothing_wrong, run};
use serving::{Serving, is_served, scrape};
use tempfile::TempDir;

/// Nothing here takes this long.
const PATIENCE: Duration = Duration::from_secs(60);

/// A raw image with contents that no job would write, and that no block has twice.
struct Image {
    folder: TempDir,
    contents: Vec<u8>,
}

impl Image {
    fn new(bytes: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut word = 0x9e37_79b9_7f4a_7c15u64;
        let contents = std::iter::repeat_with(|| {
            // Xorshift.
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            word.to_be_bytes()
        });
        let contents: Vec<u8> = contents.take(bytes / 8).flatten().collect();
        fs::write(folder.path().join("disk.img"), &contents).unwrap();
        Image { folder, contents }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("disk.img")
    }

    /// How `serve` is told to serve it.
    fn word(&self, options: &str) -> String {
        format!("fba:{}{options}", self.path().display())
    }

    fn is_untouched(&self) -> bool {
        fs::read(self.path()).unwrap() == self.contents
    }

    /// Blocks of it that are as they were.
    fn untouched_blocks(&self) -> usize {
        let now = fs::read(self.path()).unwrap();
        assert_eq!(now.len(), self.contents.len());
        now.chunks(512).zip(self.contents.chunks(512)).filter(|(now, was)| now == was).count()
    }
}

/// Runs a small job on the disks of a server.
fn job(server: &Serving, more: &[&str]) -> Ended {
    let remote = ["--remote", server.folder(), "--json", "-"];
    run(SMALL_JOB.iter().chain(&remote).chain(more))
}

#[test]
fn the_main_job_runs_on_disks_of_another_process() {
    let ways: [(&[&str], &[&str]); 5] = [
        (&[], &[]),
        (&[], &["--no-lane"]),
        (&["--driver", "epoll"], &["--driver", "epoll"]),
        (&["--driver", "epoll"], &["--driver", "epoll", "--no-lane", "--shards", "2"]),
        (&["--wait", "sleep"], &["--wait", "sleep", "--shards", "2", "--mode", "on-demand"]),
    ];
    for (serve, more) in ways {
        println!("{serve:?} {more:?}");
        let image = Image::new(4 << 20);
        let server = Serving::start(&[&image.word(",count=16")], serve);
        let ended = job(&server, &[&["--overwrite"], more].concat());
        let report = ended.with_code(0).report();
        assert_nothing_wrong(&report);
        assert!(report["bytes_written"].as_u64() > Some(0), "{report:#}");
        assert!(report["checked"].as_u64() > Some(0), "reads were compared: {report:#}");
        let ended = server.ends_well();
        assert!(ended.stderr.contains("system calls filtered"), "{ended:#?}");
        assert_eq!(image.untouched_blocks(), 0, "blocks that the whole-volume pass did not write");
    }
}

#[test]
fn without_overwrite_it_only_reads() {
    let image = Image::new(2 << 20);
    let server = Serving::start(&[&image.word(",count=4")], &[]);
    for more in [&[][..], &["--no-lane"]] {
        let report = job(&server, more).with_code(0).report();
        assert_nothing_wrong(&report);
        assert_eq!(report["bytes_written"], 0);
    }
    server.ends_well();
    assert!(image.is_untouched());
}

#[test]
fn a_volume_is_copied_byte_for_byte() {
    // A number of blocks that no transfer divides.
    let image = Image::new((3 << 20) + 5 * 512);
    let server = Serving::start(&[&image.word(",count=4,name=disk")], &[]);
    let one = server.socket("disk2");
    for remote in [Path::new(server.folder()), &one] {
        for more in [&[][..], &["--no-lane"], &["--driver", "epoll"]] {
            let out = image.folder.path().join("out.img");
            let remote = ["--remote", remote.to_str().unwrap(), "--quiet"];
            let arguments = ["copy-out", out.to_str().unwrap()];
            run(arguments.iter().chain(&remote).chain(more)).with_code(0);
            assert!(fs::read(&out).unwrap() == image.contents, "{remote:?} {more:?}");
            fs::remove_file(&out).unwrap();
        }
    }
    server.ends_well();
    assert!(image.is_untouched());
}

#[test]
fn a_disk_that_is_read_only_stays_as_it_is() {
    let image = Image::new(1 << 20);
    let server = Serving::start(&[&image.word(",ro,count=4")], &[]);
    assert_nothing_wrong(&job(&server, &[]).with_code(0).report());
    for more in [&["--overwrite"][..], &["--overwrite", "--skip-verify", "--no-lane"]] {
        let ended = job(&server, more);
        let ended = ended.with_code(1);
        let refused = "(channel end, device end, unit check), subchannel status 0x00, sense 0x80";
        let text = ended.stdout.clone() + &ended.stderr;
        assert!(text.contains(refused), "{ended:#?}");
        for other in ["device is gone", "deferred", "interface-control check"] {
            assert!(!text.contains(other), "{ended:#?}");
        }
    }
    server.ends_well();
    assert!(image.is_untouched());
}

/// A job on the disks of a server that writes and reads until it is told to end.
fn endless(server: &Serving, more: &[&str]) -> Running {
    let quiet = |word: &&&str| !["0.5", "--seconds", "--quiet"].contains(*word);
    let load = ["--remote", server.folder(), "--overwrite", "--skip-verify"];
    let long = ["--seconds", "600", "--json", "-"];
    Running::start(SMALL_JOB.iter().filter(quiet).chain(&load).chain(&long).chain(more))
}

#[test]
fn a_server_that_is_told_to_end_drains() {
    for (signal, more) in [
        (libc::SIGTERM, &[][..]),
        (libc::SIGTERM, &["--no-lane"]),
        (libc::SIGINT, &["--driver", "epoll"]),
    ] {
        println!("signal {signal} {more:?}");
        let image = Image::new(8 << 20);
        let server = Serving::start(&[&image.word(",count=16")], &[]);
        let mut client = endless(&server, more);
        client.until_it_says("FBA disks on").expect("it runs");
        // Until the load has written something, at least.
        while image.is_untouched() {
            std::thread::yield_now();
        }
        server.send(signal);
        let ended = server.end().with_code(0);
        assert!(!ended.stderr.contains("ERROR"), "{ended:#?}");
        // Its disks may come back: the job goes on, and counts what fails meanwhile.
        confinement::send(client.id(), libc::SIGINT);
        let report = client.end().with_code(1).report();
        for fault in ["lost", "duplicate", "miscompares"] {
            assert_eq!(report[fault], 0, "{report:#}");
        }
        assert!(report["ios"].as_u64() > Some(0), "{report:#}");
        for kind in report["error_kinds"].as_array().unwrap() {
            // No start reached a disk, or its server has gone.
            let what = kind["first"].as_str().unwrap();
            let is_known = ["deferred condition code 3", "(interface-control check)"];
            assert!(is_known.iter().any(|known| what.contains(known)), "{report:#}");
        }
    }
}

#[test]
fn sockets_are_taken_over_from_a_server_that_is_gone_and_from_no_other() {
    let image = Image::new(1 << 20);
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let start = || Serving::start_in(&folder, &[&image.word(",name=disk"), "null"], &[]);
    let server = start();
    let (disk, null) = (server.socket("disk"), server.socket("null0"));
    assert!(is_served(&disk) && is_served(&null));
    let null_word = ["serve", "--device", "null", "--socket", null.to_str().unwrap()];
    let error = run(null_word).error();
    assert!(error.contains("another process listens") && error.contains("null0.sock"), "{error}");
    server.send(libc::SIGKILL);
    assert_eq!(server.end().status.signal(), Some(libc::SIGKILL));
    assert!(disk.exists() && !is_served(&disk), "it is left behind");
    for _ in 0..2 {
        let server = start();
        assert!(is_served(&disk) && is_served(&null));
        let ended = server.ends_well();
        let (disk, null) = (disk.display(), null.display());
        let image = image.path();
        let serving =
            format!("serving fba {} at {disk}\nserving null at {null}\n", image.display());
        assert_eq!(ended.stdout, serving + "ready\n");
    }
}

#[test]
fn help_has_examples() {
    let help = run(["serve", "--help"]).with_code(0).stdout;
    for words in ["Examples:", "--device fba:disk.img", "--socket-dir", "SIGTERM", "--remote"] {
        assert!(help.contains(words), "no '{words}' in {help}");
    }
    assert!(run(["--help"]).with_code(0).stdout.contains("vfio-ccw serve --device"));
}

#[test]
fn what_cannot_be_served_is_said_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let here = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (socket, missing) = (here("null.sock"), here("missing.img"));
    let image = Image::new(1 << 16);
    let word = image.word("");
    let long = here(&"x".repeat(120));
    let (file, lost) = (here("file"), here("missing/null.sock"));
    fs::write(&file, "precious").unwrap();
    let odd = here("odd.img");
    fs::write(&odd, [0; 700]).unwrap();
    let (odd, missing_word) = (format!("fba:{odd}"), format!("fba:{missing}"));
    let taken = here("taken.sock");
    let _listener = UnixListener::bind(&taken).unwrap();

    let one =
        |device: &str, socket: &str| run(["serve", "--device", device, "--socket", socket]).error();
    let says = |error: String, words: &[&str]| {
        for word in words {
            assert!(error.contains(word), "no '{word}' in: {error}");
        }
    };
    says(one(&missing_word, &socket), &["missing.img", "No such file"]);
    says(one(&odd, &socket), &["odd.img", "700 bytes", "block size 512"]);
    says(one("null,count=2", &socket), &["null.sock", "2 are named", "use --socket-dir"]);
    says(one("null", &long), &["xxx", "107 are possible"]);
    says(one("null", &file), &["file", "no socket", "choose another path"]);
    says(one("null", &taken), &["taken.sock", "another process listens on it"]);
    says(one("null", &lost), &["missing/null.sock", "make its folder first"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");

    let both = ["serve", "--device", "null", "--device", &word, "--socket", &socket];
    says(run(both).error(), &["2 are named", "use --socket-dir"]);
    let named = [&word, ",name=a"].concat();
    let twice = ["serve", "--device", &named, "--device", &named, "--socket-dir", &here(".")];
    says(run(twice).error(), &["two devices have the name 'a'"]);
    // What clap says of words takes more lines, and the first one says it all.
    for (words, says) in [
        (
            &["serve", "--device", "eckd:x", "--socket", &socket][..],
            "'eckd:x' is not a device: use",
        ),
        (&["serve", "--device", "null,size=3", "--socket", &socket], "'size=3' is not an option"),
        (&["serve", "--device", "null"], "--socket"),
        (&["serve", "--socket", &socket], "--device"),
        (&["serve", "--device", "null", "--socket", &socket, "--sandbox", "no"], "use on or off"),
        (&["serve", "--device", "null", "--socket", &socket, "--socket-mode", "9"], "octal"),
    ] {
        let ended = run(words).with_code(2);
        assert!(ended.stderr.contains(says), "{ended:#?}");
    }
    // Nothing of all this has left a socket behind.
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap()).collect();
    let mut left: Vec<_> = left.iter().map(|entry| entry.file_name()).collect();
    left.sort();
    assert_eq!(left, ["file", "odd.img", "taken.sock"]);
}

#[test]
fn what_is_not_served_is_said_to_the_client() {
    let folder = tempfile::tempdir().unwrap();
    let name = folder.path().to_str().unwrap();
    let remote = |path: &str| run(SMALL_JOB.iter().chain(&["--remote", path])).error();
    let error = remote(name);
    assert!(error.contains("no socket there") && error.contains("vfio-ccw serve"), "{error}");
    let socket = folder.path().join("disk.sock");
    let error = remote(socket.to_str().unwrap());
    assert!(error.contains("disk.sock") && error.contains("No such file"), "{error}");
    drop(UnixListener::bind(&socket).unwrap());
    let error = remote(socket.to_str().unwrap());
    assert!(error.contains("its server has ended: start it again"), "{error}");
    // A device that is no disk.
    let server = Serving::start(&["null"], &[]);
    let ended = run(SMALL_JOB.iter().chain(&["--remote", server.folder()]));
    assert!(ended.error().contains(server.folder()));
    server.ends_well();
}

/// A figure on a page of metrics.
#[track_caller]
fn sample(page: &str, name: &str) -> f64 {
    let line = page.lines().find(|line| line.split([' ', '{']).next() == Some(name));
    let line = line.unwrap_or_else(|| panic!("no {name} in {page}"));
    line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number")
}

/// The page of an endpoint that says what is waited for.
#[track_caller]
fn page_when(address: &str, says_so: impl Fn(&str) -> bool) -> String {
    let begin = Instant::now();
    loop {
        let page = scrape(address);
        if says_so(&page) {
            return page;
        }
        assert!(begin.elapsed() < PATIENCE, "{page}");
    }
}

#[test]
fn figures_are_served_while_a_client_is_connected() {
    let image = Image::new(8 << 20);
    let mut server = Serving::start(&[&image.word(",count=16")], &["--metrics", "127.0.0.1:0"]);
    let line = server.until_it_says("metrics: http://").expect("it says where");
    let address = line.trim_end().trim_end_matches("/metrics").rsplit('/').next().unwrap();
    let page = scrape(address);
    let sums = ["connections_total", "messages_total", "refusals_total"];
    for name in ["clients", "lanes", "windows"].iter().chain(&sums) {
        assert_eq!(sample(&page, &format!("vfio_ccw_server_{name}")), 0.0, "{page}");
    }
    let mut client = endless(&server, &[]);
    client.until_it_says("FBA disks on").expect("it runs");
    while image.is_untouched() {
        std::thread::yield_now();
    }
    // A page may be a moment old.
    let page = page_when(address, |page| sample(page, "vfio_ccw_server_clients") > 0.0);
    let figure = |name: &str| sample(&page, &format!("vfio_ccw_server_{name}"));
    assert_eq!((figure("clients"), figure("connections_total")), (16.0, 16.0), "{page}");
    assert_eq!(figure("lanes"), 1.0, "{page}");
    assert_eq!(figure("refusals_total"), 0.0, "{page}");
    // Guest memory of 4 MiB and the shadow of its programs, for each disk.
    assert!(figure("windows") >= 32.0, "{page}");
    assert!(figure("window_bytes") > f64::from(16 << 22), "{page}");
    assert!(figure("messages_total") >= 16.0 * 8.0, "{page}");
    let timed = page.lines().find(|line| {
        line.starts_with("vfio_ccw_stage_duration_seconds_count{stage=\"device\",class=\"fba\",operation=\"write\"}")
    });
    assert!(timed.is_some_and(|line| !line.ends_with(" 0")), "{page}");
    confinement::send(client.id(), libc::SIGINT);
    client.end().with_code(0);
    let page = page_when(address, |page| {
        let left = ["clients", "lanes", "windows", "window_bytes"];
        left.iter().all(|name| sample(page, &format!("vfio_ccw_server_{name}")) == 0.0)
    });
    assert_eq!(sample(&page, "vfio_ccw_server_connections_total"), 16.0, "{page}");
    server.ends_well();
    assert!(TcpStream::connect(address).is_err(), "nothing listens after the end");
}
