//! Does what its arguments say, one after the other: a guest for the tests.
//!
//! | argument | effect |
//! | --- | --- |
//! | `args` | prints the arguments |
//! | `env NAME` | prints a variable |
//! | `read PATH` / `write PATH` | prints a file / writes `x` to it |
//! | `list PATH` | prints the names in a folder |
//! | `allocate MIB` | takes and touches that much memory |
//! | `spin` | computes for ever |
//! | `count` | prints `line 1`, `line 2` and so on, ten a second, for ever |
//! | `sleep` | waits for ever |
//! | `panic` | panics |
//! | `exit CODE` | exits |

use std::process::exit;
use std::thread::sleep;
use std::time::Duration;

fn main() {
    let mut args = std::env::args().skip(1);
    while let Some(verb) = args.next() {
        let mut next = || args.next().unwrap_or_default();
        match verb.as_str() {
            "args" => println!("{:?}", std::env::args().collect::<Vec<_>>()),
            "env" => println!("{:?}", std::env::var(next())),
            "read" => {
                let path = next();
                match std::fs::read_to_string(&path) {
                    Ok(text) => println!("{path}: {text:?}"),
                    Err(err) => println!("{path}: {:?}", err.kind()),
                }
            }
            "write" => {
                let path = next();
                match std::fs::write(&path, "x") {
                    Ok(()) => println!("{path}: written"),
                    Err(err) => println!("{path}: {:?}", err.kind()),
                }
            }
            "list" => {
                let path = next();
                match std::fs::read_dir(&path) {
                    Ok(entries) => {
                        let mut names: Vec<String> = entries
                            .flatten()
                            .map(|entry| entry.file_name().to_string_lossy().into_owned())
                            .collect();
                        names.sort();
                        println!("{path}: {names:?}");
                    }
                    Err(err) => println!("{path}: {:?}", err.kind()),
                }
            }
            "allocate" => {
                let mib: usize = next().parse().unwrap_or(1);
                let bytes = vec![1_u8; mib << 20];
                println!("allocated {}", bytes.iter().map(|b| usize::from(*b)).sum::<usize>());
            }
            "spin" => {
                println!("spinning");
                let mut n = 0_u64;
                loop {
                    n = std::hint::black_box(n.wrapping_add(1));
                }
            }
            "count" => {
                for n in 1_u64.. {
                    println!("line {n}");
                    sleep(Duration::from_millis(100));
                }
            }
            "sleep" => {
                println!("sleeping");
                loop {
                    sleep(Duration::from_secs(3600));
                }
            }
            "panic" => panic!("as asked"),
            "exit" => exit(next().parse().unwrap_or(1)),
            other => {
                println!("unknown argument {other:?}");
                exit(2);
            }
        }
    }
}
