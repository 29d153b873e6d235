//! Does what its arguments say, one after the other: a guest for the tests.
//!
//! | argument | effect |
//! | --- | --- |
//! | `args` | prints the arguments |
//! | `env NAME` | prints a variable |
//! | `read PATH` / `write PATH` | prints a file / writes `x` to it |
//! | `echo` | prints each line of standard input, then `end` |
//! | `list PATH` | prints the names in a folder |
//! | `allocate MIB` | takes and touches that much memory |
//! | `spin` | computes for ever |
//! | `count` | prints `line 1`, `line 2` and so on, ten a second, for ever |
//! | `sleep` | waits for ever |
//! | `panic` | panics |
//! | `exit CODE` | exits |
//! | `recurse` | calls itself for ever |
//! | `flood` | prints for ever |
//! | `open-all PATH` | opens a file until that fails |
//! | `link FROM TO` / `symlink FROM TO` / `rename FROM TO` | as they say |
//! | `resolve NAME` | prints the addresses of a name |
//! | `serve ADDRESS` / `dial ADDRESS` | one TCP connection: answers `ping` with `pong` |
//! | `udp-serve ADDRESS` / `udp ADDRESS` | one datagram and its answer |

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
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
            "echo" => {
                use std::io::IsTerminal;
                println!("terminal: {}", std::io::stdin().is_terminal());
                for line in std::io::stdin().lines() {
                    println!("got {}", line.expect("input is text"));
                }
                println!("end");
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
            "recurse" => println!("{}", recurse(std::hint::black_box(1))),
            "flood" => loop {
                println!("{}", "x".repeat(4000));
            },
            "open-all" => {
                let path = next();
                let mut files = Vec::new();
                let err = loop {
                    match File::open(&path) {
                        Ok(file) => files.push(file),
                        Err(err) => break err,
                    }
                };
                println!("opened {} times, then {err}", files.len());
            }
            "link" => said("link", std::fs::hard_link(next(), next())),
            #[allow(deprecated)]
            "symlink" => said("symlink", std::fs::soft_link(next(), next())),
            "rename" => said("rename", std::fs::rename(next(), next())),
            "resolve" => match (next(), 80).to_socket_addrs() {
                Ok(found) => println!("resolved {:?}", found.collect::<Vec<_>>()),
                Err(err) => println!("resolve: {err}"),
            },
            "serve" => said("serve", serve(&next())),
            "dial" => said("dial", dial(&next())),
            "udp-serve" => said("udp-serve", udp_serve(&next())),
            "udp" => said("udp", udp(&next())),
            other => {
                println!("unknown argument {other:?}");
                exit(2);
            }
        }
    }
}

fn said(verb: &str, result: std::io::Result<()>) {
    match result {
        Ok(()) => println!("{verb}: done"),
        Err(err) => println!("{verb}: {:?} ({err})", err.kind()),
    }
}

#[allow(unconditional_recursion)]
fn recurse(n: u64) -> u64 {
    let below = recurse(std::hint::black_box(n + 1));
    std::hint::black_box(below) + n
}

fn serve(address: &str) -> std::io::Result<()> {
    let listener = TcpListener::bind(address)?;
    println!("listening on {}", listener.local_addr()?);
    let (mut stream, _) = listener.accept()?;
    let mut ping = [0; 4];
    stream.read_exact(&mut ping)?;
    println!("received {}", String::from_utf8_lossy(&ping));
    stream.write_all(b"pong")
}

fn dial(address: &str) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(b"ping")?;
    let mut pong = String::new();
    stream.read_to_string(&mut pong)?;
    println!("received {pong}");
    Ok(())
}

fn udp_serve(address: &str) -> std::io::Result<()> {
    let socket = UdpSocket::bind(address)?;
    println!("waiting on {}", socket.local_addr()?);
    let mut ping = [0; 16];
    let (n, from) = socket.recv_from(&mut ping)?;
    println!("received {}", String::from_utf8_lossy(&ping[..n]));
    socket.send_to(b"pong", from).map(drop)
}

fn udp(address: &str) -> std::io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.send_to(b"ping", address)?;
    let mut pong = [0; 16];
    let (n, _) = socket.recv_from(&mut pong)?;
    println!("received {}", String::from_utf8_lossy(&pong[..n]));
    Ok(())
}
