//! A confined process: what it goes on doing, what is refused, what kills.

#[path = "../src/confinement/alone.rs"]
mod alone;
pub mod bench_guest;

use std::collections::HashMap;
use std::ffi::c_void;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr;
use std::thread;
use std::time::Duration;

use alone::{alone, killed_by, passed};
use bench_guest::fba::{self, Image};
use bench_guest::{Bench, Device};
use vfio_ccw::architecture::{Orb, command};
use vfio_ccw::confinement::{Confinement, ConfinementError, User};
use vfio_ccw::{Driver, DriverChoice, Service};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// Where things stand in guest memory.
const AREA: u32 = 0x2000;
const BUFFER: u32 = 0x1_0000;

const MEMORY: usize = 1 << 20;
const BLOCKS: u32 = 64;

/// Confines this process, where the kernel can.
fn confine(confinement: &Confinement) -> Result<(), String> {
    match confinement.enter() {
        Ok(confined) => {
            println!("{confined}");
            Ok(())
        }
        Err(error @ ConfinementError::NoSeccomp(_)) => Err(error.to_string()),
        Err(error) => panic!("{error}"),
    }
}

fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> Option<i32> {
    result.unwrap_err().raw_os_error()
}

#[test]
fn a_process_goes_on() {
    let output = alone("a_process_goes_on", || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (left, right) = UnixStream::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        confine(&Confinement::new())?;

        runtime.block_on(async {
            listener.set_nonblocking(true).unwrap();
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let (accepted, _) = listener.accept().await.unwrap();
            client.set_nonblocking(true).unwrap();
            let client = tokio::net::TcpStream::from_std(client).unwrap();
            client.writable().await.unwrap();
            client.try_write(b"scrape").unwrap();
            accepted.readable().await.unwrap();
            let mut bytes = [0; 16];
            assert_eq!(accepted.try_read(&mut bytes).unwrap(), 6);
            assert_eq!(bytes[..6], *b"scrape");
            tokio::time::sleep(Duration::from_millis(5)).await;
            tokio::task::spawn_blocking(|| HashMap::from([(1, 2)])).await.unwrap();
        });

        // What a client needs that comes later.
        let later = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        later.block_on(async { tokio::time::sleep(Duration::from_millis(1)).await });
        let shadow = rustix::fs::memfd_create("shadow", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        File::from(shadow).set_len(4096).unwrap();

        // A descriptor comes over a socket, and is the eventfd that it should be.
        let doorbell = EventFd::new(0).unwrap();
        left.send_with_fd(&b"x"[..], doorbell.as_raw_fd()).unwrap();
        let mut byte = [0];
        let (1, Some(received)) = right.recv_with_fd(&mut byte).unwrap() else {
            panic!("{byte:?}")
        };
        let link = fs::read_link(format!("/proc/self/fd/{}", received.as_raw_fd())).unwrap();
        assert_eq!(link.to_str(), Some("anon_inode:[eventfd]"));
        doorbell.write(3).unwrap();
        let mut count = [0; 8];
        (&received).read_exact(&mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 3);
        let _second = received.try_clone().unwrap();

        file.write_all_at(b"block", 512).unwrap();
        file.sync_all().unwrap();
        file.sync_data().unwrap();
        assert_eq!(file.metadata().unwrap().len(), 517);
        let big = thread::spawn(|| vec![1u8; 64 << 20].iter().map(|byte| u64::from(*byte)).sum());
        assert_eq!(big.join().map_err(drop), Ok(64u64 << 20));
        let named = thread::Builder::new().name("later".to_owned()).spawn(|| {
            thread::sleep(Duration::from_millis(1));
            thread::available_parallelism().is_ok()
        });
        assert!(named.unwrap().join().unwrap());
        assert!(thread::spawn(|| panic!("as expected")).join().is_err());
        io::stderr().write_all(b"a line of the log\n").unwrap();

        let again = Confinement::new().enter();
        assert!(matches!(again, Err(ConfinementError::Already)), "{again:?}");
        Ok(())
    });
    output.as_ref().map(passed);
}

#[test]
fn what_is_refused() {
    let output = alone("what_is_refused", || {
        let file = tempfile::NamedTempFile::new().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        confine(&Confinement::new())?;

        let path = file.path();
        assert_eq!(errno(File::open(path)), Some(libc::EACCES));
        assert_eq!(errno(File::create(path)), Some(libc::EACCES));
        assert_eq!(errno(fs::read_dir("/")), Some(libc::EACCES));
        assert_eq!(errno(fs::metadata(path)), Some(libc::EPERM));
        assert_eq!(errno(fs::remove_file(path)), Some(libc::EPERM));
        assert_eq!(errno(TcpListener::bind("127.0.0.1:0")), Some(libc::EPERM));
        assert_eq!(errno(TcpStream::connect(listener.local_addr().unwrap())), Some(libc::EPERM));
        assert_eq!(errno(UnixStream::pair()), Some(libc::EPERM));
        // SAFETY: nothing is there to be killed, and nothing is. Test: this one.
        assert_eq!(unsafe { libc::kill(1, 0) }, -1);
        // SAFETY: a number. Test: this one.
        let open = unsafe { libc::syscall(libc::SYS_io_uring_setup, 0, ptr::null::<c_void>()) };
        assert_eq!((open, errno_now()), (-1, Some(libc::EPERM)));

        // s390x: mmap's arguments are out of a filter's sight.
        if cfg!(not(target_arch = "s390x")) {
            assert_eq!(map(libc::PROT_READ | libc::PROT_EXEC), Err(Some(libc::EPERM)));
        }
        let data = map(libc::PROT_READ | libc::PROT_WRITE).unwrap();
        let code = libc::PROT_READ | libc::PROT_EXEC;
        // SAFETY: pages that were mapped just now and are not used. Test: this one.
        assert_eq!(unsafe { libc::mprotect(data, 4096, code) }, -1);
        assert_eq!(errno_now(), Some(libc::EPERM));
        println!("all refused");
        Ok(())
    });
    if let Some(output) = output {
        passed(&output);
        assert!(String::from_utf8_lossy(&output.stdout).contains("all refused"), "{output:#?}");
    }
}

fn errno_now() -> Option<i32> {
    io::Error::last_os_error().raw_os_error()
}

/// A page of memory of our own.
fn map(protection: i32) -> Result<*mut c_void, Option<i32>> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping, wherever the kernel likes. Test: `what_is_refused`.
    let page = unsafe { libc::mmap(ptr::null_mut(), 4096, protection, flags, -1, 0) };
    if page == libc::MAP_FAILED { Err(errno_now()) } else { Ok(page) }
}

#[test]
fn another_program_kills() {
    let output = alone("another_program_kills", || {
        confine(&Confinement::new())?;
        let error = Command::new("/bin/true").exec();
        panic!("still there: {error}");
    });
    if let Some(output) = output {
        killed_by(&output, libc::SIGSYS);
    }
}

#[test]
fn another_process_kills() {
    let output = alone("another_process_kills", || {
        confine(&Confinement::new())?;
        let child = Command::new("/bin/true").spawn();
        panic!("still there: {child:?}");
    });
    if let Some(output) = output {
        killed_by(&output, libc::SIGSYS);
    }
}

/// From a thread that was there before, which the filter reaches, too.
#[test]
fn another_program_kills_from_any_thread() {
    let output = alone("another_program_kills_from_any_thread", || {
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let early = thread::spawn(move || {
            wait.recv().unwrap();
            Command::new("/bin/true").exec()
        });
        confine(&Confinement::new())?;
        go.send(()).unwrap();
        panic!("still there: {:?}", early.join());
    });
    if let Some(output) = output {
        killed_by(&output, libc::SIGSYS);
    }
}

#[test]
fn root_may_become_nobody() {
    let output = alone("root_may_become_nobody", || {
        let user = User { uid: 65_534, gid: 65_534 };
        if !rustix::process::geteuid().is_root() {
            return Err("only root becomes another user".to_owned());
        }
        confine(&Confinement::new().user(user))?;
        // SAFETY: no argument. Test: this one.
        assert_eq!(unsafe { (libc::getuid(), libc::getegid()) }, (user.uid, user.gid));
        Ok(())
    });
    output.as_ref().map(passed);
}

/// Reads two blocks of a disk and writes them elsewhere.
fn use_disk(bench: &Bench, disk: &mut Device, image: &File) {
    for (code, first) in [(command::FBA_READ, 3), (command::FBA_WRITE, 9)] {
        fba::put_transfer(bench, AREA, code, first, 2, BUFFER);
        let irb = disk.run(&Orb::new(AREA + fba::CCWS));
        assert!(irb.scsw.is_clean_end(), "{irb:?}");
    }
    assert_eq!(bench.peek(BUFFER.into(), 1024), fba::blocks(3, 2));
    let mut written = [0; 1024];
    image.read_exact_at(&mut written, 9 * 512).unwrap();
    assert_eq!(written[..], fba::blocks(3, 2));
}

fn service_on(driver: Driver) -> Result<Bench, String> {
    let memory = bench_guest::memory(MEMORY);
    let service = Service::builder().driver(DriverChoice::Only(driver)).build(memory.clone());
    Ok(Bench { memory, service: service.map_err(|error| error.to_string())? })
}

/// A disk in use before and after, one that comes later and one that goes.
fn goes_on(driver: Driver) -> Result<(), String> {
    let (image, later) = (Image::new(BLOCKS), Image::new(BLOCKS).disk());
    let file = File::open(image.path()).unwrap();
    let bench = service_on(driver)?;
    let mut disk = bench.attach(image.disk());
    use_disk(&bench, &mut disk, &file);
    confine(&Confinement::new().io_uring(driver == Driver::IoUring))?;
    (0..50).for_each(|_| use_disk(&bench, &mut disk, &file));
    let mut later = bench.attach(later);
    fba::put_transfer(&bench, AREA, command::FBA_READ, 5, 1, BUFFER);
    assert!(later.run(&Orb::new(AREA + fba::CCWS)).scsw.is_clean_end());
    bench.service.detach(disk.subchannel);
    Ok(())
}

#[test]
fn a_service_goes_on_with_epoll() {
    let output = alone("a_service_goes_on_with_epoll", || goes_on(Driver::Epoll));
    output.as_ref().map(passed);
}

#[test]
fn a_service_goes_on_with_io_uring() {
    let output = alone("a_service_goes_on_with_io_uring", || goes_on(Driver::IoUring));
    output.as_ref().map(passed);
}

/// How much memory may be locked stands in /proc, which is out of reach.
#[test]
fn a_service_does_not_start_any_more() {
    let output = alone("a_service_does_not_start_any_more", || {
        confine(&Confinement::new())?;
        let error = service_on(Driver::Epoll).unwrap_err();
        assert!(error.contains("RLIMIT_MEMLOCK") && error.contains("os error 13"), "{error}");
        Ok(())
    });
    output.as_ref().map(passed);
}
