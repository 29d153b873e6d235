//! Greets once a second, in the words of a ConfigMap: `GREETING` from the
//! environment, the rest from the file named by the first argument.

use std::thread::sleep;
use std::time::Duration;

fn main() {
    let path = std::env::args().nth(1).unwrap_or_else(|| "/config/audience".to_owned());
    let greeting = std::env::var("GREETING").unwrap_or_else(|_| "Hello".to_owned());
    for n in 1_u64.. {
        match std::fs::read_to_string(&path) {
            Ok(audience) => println!("{greeting}, {}! ({n})", audience.trim()),
            Err(err) => println!("{greeting}! ({n}; {path}: {err})"),
        }
        sleep(Duration::from_secs(1));
    }
}
