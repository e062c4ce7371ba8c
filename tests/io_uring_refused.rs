//! Where a seccomp filter or the kernel refuses io_uring, the whole job runs on epoll.
#![cfg(feature = "cli")]

pub mod command_line;
pub mod confinement;

use command_line::{SMALL_JOB, SMALL_VOLUME, end, vfio_ccw};

/// EPERM is what container runtimes' profiles answer, ENOSYS a kernel without it.
const REFUSALS: [i32; 2] = [libc::EPERM, libc::ENOSYS];

#[test]
fn the_job_runs_on_epoll() {
    for errno in REFUSALS {
        let mut command = vfio_ccw(SMALL_JOB.iter().chain(&SMALL_VOLUME).chain(&["--json", "-"]));
        confinement::refuse_io_uring(&mut command, errno);
        let ended = end(&mut command).with_code(0);
        let report = ended.report();
        assert_eq!(report["driver"], "epoll");
        assert!(report["ios"].as_u64() > Some(0) && report["checked"].as_u64() > Some(0));
        for fault in ["lost", "duplicate", "miscompares", "errors"] {
            assert_eq!(report[fault], 0, "{fault}: {report:#}");
        }
        assert!(ended.stderr.contains("io_uring is refused here"), "{}", ended.stderr);
    }
}

#[test]
fn demanding_it_is_an_error() {
    for errno in REFUSALS {
        let demanded = ["--driver", "io_uring"];
        let mut command = vfio_ccw(SMALL_JOB.iter().chain(&SMALL_VOLUME).chain(&demanded));
        confinement::refuse_io_uring(&mut command, errno);
        let message = end(&mut command).error();
        assert!(message.contains("io_uring does not work here"), "{message}");
        assert!(message.contains(&format!("os error {errno}")), "{message}");
        assert!(message.contains("use driver auto or epoll"), "{message}");
    }
}
