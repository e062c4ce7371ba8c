//! Whole screens.

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Cell;
use ratatui::style::{Color, Modifier};

use super::super::figures::tests::{figures, pages, server_pages};
use super::*;

fn drawn(width: u16, height: u16, change: impl FnOnce(&mut Screen<'_>)) -> TestBackend {
    let choice = Choice::default();
    let figures = figures(pages(), &choice, Sort::Busy);
    let mut screen = Screen {
        address: "127.0.0.1:9464",
        figures: Some(&figures),
        choice: &choice,
        sort: Sort::Busy,
        scroll: 0,
        help: false,
        notice: None,
        foot: "q end",
        palette: Palette::PLAIN,
    };
    change(&mut screen);
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| screen.draw(frame)).unwrap();
    terminal.backend().clone()
}

fn lines(backend: &TestBackend) -> Vec<String> {
    let buffer = backend.buffer();
    let cells = buffer.content().chunks(usize::from(buffer.area.width));
    cells
        .map(|row| row.iter().map(|cell| cell.symbol()).collect::<String>().trim_end().to_owned())
        .collect()
}

#[test]
fn a_service() {
    let expected = "\
vfio-ccw   127.0.0.1:9464  version 0.1.0  over 2.00 s  class all  operation all
load       IOPS 1010  read 3.91 MiB/s  written 1000 KiB/s  in flight 64  queued 2  oldest 1.20 ms
           slow 0/s
ended      ok 1000/s  unit_check 10/s (30 in all)
sense      equipment_check 10/s (30 in all)

stage       requests      p50      p99    p99.9     mean    share  of total
queue         3000/s  12.5 µs  24.8 µs  25.0 µs  20.0 µs   20.0 %  ██████▋
translate          -        -        -        -        -        -
pin                -        -        -        -        -        -
start              -        -        -        -        -        -
device        3000/s  62.5 µs  99.2 µs  99.9 µs  80.0 µs   80.0 %  ██████████████████████████▍
deliver            -        -        -        -        -        -
total         3000/s  62.5 µs  99.2 µs  99.9 µs   100 µs    100 %

pin pool   [███████████████     ] 75.0 %  pinned 48 MiB of 64 MiB  peak 50 MiB  windows 1
           hit rate 90.0 %  misses 1000/s  evictions 500/s  invalidations 0/s  waits 0/s  waiting 0
at budget  ×0.5 75.0 %  ×2 -
shards     looking 25.0 %  in vain 0.0 %  asleep 50.0 %  doorbells sent 100/s  suppressed 900/s

subchannel   class     requests    errors     oldest                           busy▼  of 3
0.0.0001     fba          333/s       1/s     300 µs  █████████               45.0 %
0.0.0002     fba          500/s       2/s     200 µs  ██████                  30.0 %
0.0.0000     fba         1000/s       0/s     100 µs  ███                     15.0 %



q end";
    assert_eq!(lines(&drawn(100, 28, |_| {})).join("\n"), expected);
}

#[test]
fn a_device_server() {
    let choice = Choice::default();
    let figures = figures(server_pages(), &choice, Sort::Busy);
    let mut terminal = Terminal::new(TestBackend::new(100, 24)).unwrap();
    let screen = Screen {
        address: "127.0.0.1:9465",
        figures: Some(&figures),
        choice: &choice,
        sort: Sort::Busy,
        scroll: 0,
        help: false,
        notice: None,
        foot: "q end",
        palette: Palette::PLAIN,
    };
    terminal.draw(|frame| screen.draw(frame)).unwrap();
    let text = lines(terminal.backend()).join("\n");
    let server = "server     clients 2  connections 1/s  messages 20/s  refusals -  lanes 8  windows 3 (256 MiB)";
    assert!(text.contains(server), "{text}");
    assert!(!text.contains("pin pool") && !text.contains("subchannel"), "{text}");
}

#[test]
fn a_screen_of_24_lines_has_room_for_subchannels() {
    let lines = lines(&drawn(80, 24, |screen| screen.scroll = 1));
    assert!(lines.iter().all(|line| line.chars().count() <= 80), "{lines:#?}");
    let table = lines.iter().position(|line| line.starts_with("subchannel")).unwrap();
    assert!(lines[table + 1].starts_with("0.0.0002"), "{lines:#?}");
}

#[test]
fn a_terminal_that_is_too_small_says_so() {
    for (width, height) in [(59, 40), (80, 15), (20, 6)] {
        let text = lines(&drawn(width, height, |_| {})).join(" ");
        assert!(text.contains("This terminal has"), "{text}");
    }
    drawn(1, 1, |_| {});
    drawn(60, 16, |_| {});
}

#[test]
fn what_is_to_be_said_is_said_with_and_without_numbers() {
    let words = Notice { words: "no metrics for 3 s".to_owned(), is_trouble: true };
    assert!(
        lines(&drawn(80, 24, |screen| screen.notice = Some(&words)))
            .contains(&"no metrics for 3 s".to_owned())
    );
    let nothing = lines(&drawn(80, 24, |screen| {
        screen.notice = Some(&words);
        screen.figures = None;
    }));
    assert_eq!(nothing[1], "no metrics for 3 s", "{nothing:#?}");
    let help = lines(&drawn(80, 24, |screen| screen.help = true));
    assert!(help.iter().any(|line| line.contains("hold the picture")), "{help:#?}");
}

#[test]
fn errors_stand_out_with_colours_and_without() {
    let cells = |palette| {
        let backend = drawn(100, 28, |screen| screen.palette = palette);
        backend.buffer().content().to_vec()
    };
    let mark = |cell: &Cell| cell.modifier.contains(Modifier::REVERSED);
    let outcome = "unit_check 10/s (30 in all)".len();
    let plain = cells(Palette::PLAIN);
    assert!(plain.iter().all(|cell| cell.fg == Color::Reset));
    // The last line is marked, too.
    assert!(plain.iter().filter(|cell| mark(cell)).count() >= 100 + outcome);
    let coloured = cells(Palette::COLOURED);
    assert!(coloured.iter().filter(|cell| cell.fg == Color::LightRed).count() >= outcome);
}
