//! Whole screens.

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Cell;
use ratatui::style::{Color, Modifier};

use super::super::figures::tests::{figures, pages, server_pages};
use super::*;

/// What there is to be shown.
struct Scene {
    figures: Figures,
    choice: Choice,
}

impl Scene {
    fn of(pages: [String; 2]) -> Self {
        let choice = Choice::default();
        Scene { figures: figures(pages, &choice, Sort::Busy), choice }
    }

    fn screen(&self) -> Screen<'_> {
        Screen {
            address: "127.0.0.1:9464",
            figures: Some(&self.figures),
            choice: &self.choice,
            sort: Sort::Busy,
            scroll: 0,
            help: false,
            notice: None,
            foot: "q end",
            palette: Palette::PLAIN,
        }
    }
}

fn drawn(width: u16, height: u16, screen: Screen<'_>) -> TestBackend {
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
    assert_eq!(lines(&drawn(100, 28, Scene::of(pages()).screen())).join("\n"), expected);
}

#[test]
fn a_device_server() {
    let text = lines(&drawn(100, 24, Scene::of(server_pages()).screen())).join("\n");
    let server = "server     clients 2  connections 1/s  messages 20/s  refusals -  lanes 8  windows 3 (256 MiB)";
    assert!(text.contains(server), "{text}");
    assert!(!text.contains("pin pool") && !text.contains("subchannel"), "{text}");
}

#[test]
fn a_screen_of_24_lines_has_room_for_subchannels() {
    let scene = Scene::of(pages());
    let lines = lines(&drawn(80, 24, Screen { scroll: 1, ..scene.screen() }));
    let table = lines.iter().position(|line| line.starts_with("subchannel")).unwrap();
    assert!(lines[table + 1].starts_with("0.0.0002"), "{lines:#?}");
}

#[test]
fn a_terminal_that_is_too_small_says_so() {
    let scene = Scene::of(pages());
    for (width, height) in [(59, 40), (80, 15), (20, 6)] {
        let text = lines(&drawn(width, height, scene.screen())).join(" ");
        assert!(text.contains("This terminal has"), "{text}");
    }
    drawn(1, 1, scene.screen());
    drawn(60, 16, scene.screen());
}

#[test]
fn what_is_to_be_said_is_said_with_and_without_numbers() {
    let scene = Scene::of(pages());
    let notice = Notice { words: "no metrics for 3 s".to_owned(), is_trouble: true };
    let said = Screen { notice: Some(&notice), ..scene.screen() };
    assert!(lines(&drawn(80, 24, said)).contains(&notice.words));
    let nothing = lines(&drawn(80, 24, Screen { figures: None, ..said }));
    assert_eq!(nothing[1], notice.words, "{nothing:#?}");
    let help = lines(&drawn(80, 24, Screen { help: true, ..said }));
    assert!(help.iter().any(|line| line.contains("hold the picture")), "{help:#?}");
}

#[test]
fn errors_stand_out_with_colours_and_without() {
    let scene = Scene::of(pages());
    let cells = |palette| {
        let backend = drawn(100, 28, Screen { palette, ..scene.screen() });
        backend.buffer().content().to_vec()
    };
    let mark = |cell: &&Cell| cell.modifier.contains(Modifier::REVERSED);
    let outcome = "unit_check 10/s (30 in all)".len();
    let plain = cells(Palette::PLAIN);
    assert!(plain.iter().all(|cell| cell.fg == Color::Reset));
    // The last line is marked, too.
    assert!(plain.iter().filter(mark).count() >= 100 + outcome);
    let coloured = cells(Palette::COLOURED);
    assert!(coloured.iter().filter(|cell| cell.fg == Color::LightRed).count() >= outcome);
}
