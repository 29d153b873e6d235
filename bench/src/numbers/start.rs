//! From the start of the master's process until `GET /readyz`, over a new TLS
//! connection, has answered 200. The first start makes the keys and an empty
//! store; the later ones find them, after a SIGKILL.

use std::process::Child;
use std::time::Duration;

use anyhow::ensure;
use http::Method;
use tokio::time::{Instant, sleep};

use crate::client::Admin;
use crate::report::{Samples, note, value};
use crate::world::World;

pub(crate) async fn measure(world: &mut World, rounds: usize) -> anyhow::Result<()> {
    let mut times = Vec::new();
    let mut first = Vec::new();
    for _ in 0..rounds {
        for folder in ["master", "kubeconfig"] {
            let path = world.dir().join(folder);
            let _ = std::fs::remove_dir_all(&path);
            let _ = std::fs::remove_file(&path);
        }
        first.push(one(world).await?);
        times.push(one(world).await?);
    }
    let show = |all: &Samples| {
        format!("median {:.1} ms, min {:.1}, max {:.1}", all.median(), all.min(), all.max())
    };
    let times = Samples::of_durations(&times);
    let met = times.median() <= 60.0;
    value("start to /readyz, keys and store exist", &show(&times), "<= 60 ms", met);
    let first = Samples::of_durations(&first);
    value("start to /readyz, first start", &show(&first), "<= 60 ms", first.median() <= 60.0);
    note(&format!("{rounds} rounds each"));
    Ok(())
}

async fn one(world: &World) -> anyhow::Result<Duration> {
    let mut command = world.master_command(&[])?;
    let started = Instant::now();
    let child = world.spawn("master", &mut command)?;
    let answered = answered(world, started).await;
    World::end(child as Child)?;
    answered
}

async fn answered(world: &World, started: Instant) -> anyhow::Result<Duration> {
    loop {
        // Until the first start has written the kubeconfig there is none to read.
        if let Ok(admin) = Admin::read(&world.kubeconfig())
            && let Ok(mut connection) = admin.connect().await
            && let Ok((200, _)) = connection.send(Method::GET, "/readyz", "".into()).await
        {
            return Ok(started.elapsed());
        }
        ensure!(started.elapsed() < Duration::from_secs(30), "/readyz does not answer in 30 s");
        sleep(Duration::from_millis(1)).await;
    }
}
