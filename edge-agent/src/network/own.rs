//! The node's own addresses, followed as they change: a board gets another one by
//! DHCP, a cable is plugged in. The kernel says that something changed, and then all
//! of them are read anew. Knows nothing of what they are for.

use std::net::IpAddr;
use std::time::Duration;

use futures::channel::mpsc::UnboundedReceiver;
use futures::{FutureExt, StreamExt};
use rtnetlink::MulticastGroup;
use tokio::sync::watch;

use super::own_addresses;

/// How long changes are gathered: an address goes and the next one comes.
const GATHER: Duration = Duration::from_millis(100);
/// How often they are read in any case: the kernel may drop what it says.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Keeps `addresses` what they are, until it is dropped.
pub async fn follow_addresses(addresses: watch::Sender<Vec<IpAddr>>) {
    loop {
        let groups = [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
        match rtnetlink::new_multicast_connection(&groups) {
            Ok((connection, _handle, mut changes)) => {
                // Ends with this future.
                tokio::select! {
                    () = connection => {}
                    () = read_on_change(&addresses, &mut changes) => {}
                }
            }
            Err(error) => {
                tracing::warn!(%error, "changes of the node's addresses are noticed late");
            }
        }
        read(&addresses).await;
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Reads whenever something has come, until nothing can come any more.
async fn read_on_change<T>(
    addresses: &watch::Sender<Vec<IpAddr>>,
    changes: &mut UnboundedReceiver<T>,
) {
    loop {
        read(addresses).await;
        tokio::select! {
            change = changes.next() => {
                if change.is_none() {
                    return;
                }
                tokio::time::sleep(GATHER).await;
                while changes.next().now_or_never().flatten().is_some() {}
            }
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

async fn read(addresses: &watch::Sender<Vec<IpAddr>>) {
    let now = own_addresses().await;
    addresses.send_if_modified(|known| {
        let is_new = *known != now;
        if is_new {
            tracing::info!(addresses = ?now, "the node's own addresses");
            *known = now;
        }
        is_new
    });
}

#[cfg(test)]
mod tests {
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    /// Changes a network of its own, so it stands on a thread of its own.
    #[test]
    fn an_address_that_comes_and_goes_is_noticed() {
        let run = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(noticed());
        };
        std::thread::spawn(run).join().unwrap();
    }

    async fn noticed() {
        let ip = |line: &str| {
            let status = std::process::Command::new("ip").args(line.split(' ')).status();
            assert!(status.unwrap().success(), "ip {line}");
        };
        ip("link add uplink type veth peer name far");
        ip("link set uplink up");
        let (to, mut addresses) = watch::channel(Vec::new());
        let becomes = async {
            let has = |wanted: &'static str| {
                move |known: &Vec<IpAddr>| known.contains(&wanted.parse().unwrap())
            };
            ip("addr add 192.0.2.7/24 dev uplink");
            addresses.wait_for(has("192.0.2.7")).await.unwrap();
            ip("addr del 192.0.2.7/24 dev uplink");
            ip("addr add 192.0.2.8/24 dev uplink");
            // The proxy's own address for this node among its pods is none of its network.
            ip("addr add 10.42.1.1/32 dev lo scope host");
            let all = addresses.wait_for(has("192.0.2.8")).await.unwrap().clone();
            assert!(!has("192.0.2.7")(&all) && !has("10.42.1.1")(&all), "{all:?}");
        };
        tokio::select! {
            () = follow_addresses(to) => unreachable!("it goes on"),
            done = tokio::time::timeout(Duration::from_secs(60), becomes) => done.unwrap(),
        }
    }
}
