//! Devices: they come, stay for a while at any node, leave without a word, and come again after the last id that they saw.

use super::world::{Phase, World};
use crate::harness::device::take_blocks;
use crate::harness::http::Body;
use crate::harness::{Event, Request};
use rand::RngExt;
use rand::rngs::StdRng;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::time::{sleep, timeout};

/// A node that doesn't answer for so long is left for another.
const ANSWER: Duration = Duration::from_secs(4);
/// So long nothing comes, not even a heartbeat: two of them are missing.
const SILENCE: Duration = Duration::from_secs(25);

/// A device until the end of the world.
pub async fn live(world: Arc<World>, device: usize, mut random: StdRng) {
    let mut phases = world.phases();
    loop {
        let phase = *phases.borrow_and_update();
        let (visit, pause) = match phase {
            Phase::Roam => (random.random_range(1_000..12_000), random.random_range(20..3_000)),
            Phase::Stay => (u64::MAX, random.random_range(20..300)),
            Phase::End => return,
        };
        let visited = async {
            // How a stream ends is no matter: it will come again.
            let _ = timeout(Duration::from_millis(visit), stream(&world, device, &mut random)).await;
            world.devices[device].is_on.store(false, Ordering::Release);
            sleep(Duration::from_millis(pause)).await;
        };
        tokio::select! {
            () = visited => {}
            _ = phases.changed() => world.devices[device].is_on.store(false, Ordering::Release),
        }
    }
}

async fn stream(world: &World, device: usize, random: &mut StdRng) -> io::Result<()> {
    let address = world.some_node(random);
    let state = if random.random_bool(0.3) { "background" } else { "active" };
    let request =
        Request::get(&format!("/v1/stream?after=earliest&state={state}")).bearer(&world.devices[device].token);
    let request = match world.ledger.last_seen(device) {
        0 => request,
        last => request.header("Last-Event-ID", &last.to_string()),
    };
    // Some look away between two looks, and little fits on the way to them.
    let dozes = world.phase() == Phase::Roam && random.random_bool(0.2);
    let socket = TcpSocket::new_v4()?;
    if dozes {
        socket.set_recv_buffer_size(4 << 10)?;
    }
    let mut tcp = timeout(ANSWER, socket.connect(address)).await??;
    tcp.write_all(&request.to_bytes(address)).await?;
    let (mut body, mut lines, mut chunk) = (Body::default(), vec![], [0; 4 << 10]);
    loop {
        let patience = if body.head().is_some() { SILENCE } else { ANSWER };
        let n = timeout(patience, tcp.read(&mut chunk)).await??;
        if n == 0 {
            return Ok(());
        }
        body.push(&chunk[..n]);
        match body.head() {
            None => continue,
            Some((200, _)) => {}
            Some((503, _)) => return Ok(()),
            Some((status, _)) => {
                world.ledger.flaw(format!("a stream is answered {status}"));
                return Ok(());
            }
        }
        if dozes && lines.is_empty() {
            sleep(Duration::from_millis(random.random_range(200..2_000))).await;
        }
        lines.append(&mut body.content);
        for event in take_blocks(&mut lines).iter().map(|block| Event::read(block)) {
            match &*event.name {
                "ready" => {
                    world.ledger.opened();
                    world.devices[device].is_on.store(true, Ordering::Release);
                }
                "message" => world.ledger.take(device, &event),
                "" | "bye" => {}
                other => world.ledger.flaw(format!("{other}: {event:?}")),
            }
        }
    }
}
