//! Several nodes on the same planes.

use super::node::{Node, Secrets, Setup};
use super::planes::Planes;
use crate::servers::proxy::Proxy;
use std::ops::{Index, IndexMut};
use std::sync::Arc;

/// See the module's text. They are dropped in this order: servers outlive the nodes.
pub struct Cluster {
    nodes: Vec<Node>,
    ways: Vec<Ways>,
    pub planes: Arc<Planes>,
}

/// One node's ways to the servers.
pub struct Ways {
    pub redis: Proxy,
    pub postgres: Proxy,
}

impl Cluster {
    /// So many nodes on the shared servers.
    #[track_caller]
    pub fn start(nodes: usize) -> Self {
        Self::of(nodes, &Node::setup(), Planes::shared())
    }

    /// The nodes are set up alike.
    #[track_caller]
    pub fn of(nodes: usize, setup: &Setup, planes: Planes) -> Self {
        Self::with(nodes, setup, planes, |_| None)
    }

    /// Each node reaches the servers by proxies of its own, which may be told to break: see [`Self::ways`].
    #[track_caller]
    pub fn by_proxies(nodes: usize, setup: &Setup, planes: Planes) -> Self {
        Self::with(nodes, setup, planes, |planes| {
            let redis = Proxy::to(planes.redis.alone().address());
            Some(Ways { redis, postgres: Proxy::to(planes.postgres_address()) })
        })
    }

    #[track_caller]
    fn with(nodes: usize, setup: &Setup, planes: Planes, way: impl Fn(&Planes) -> Option<Ways>) -> Self {
        let mut cluster = Self { nodes: vec![], ways: vec![], planes: Arc::new(planes) };
        let secrets = Secrets::default();
        for _ in 0..nodes {
            let way = way(&cluster.planes);
            let by = way.as_ref().map(|way| [way.redis.address(), way.postgres.address()]);
            cluster.ways.extend(way);
            cluster.nodes.push(setup.clone().on(&cluster.planes, by, &secrets).start());
        }
        cluster
    }

    /// How the `n`th node reaches the servers.
    pub fn ways(&self, n: usize) -> &Ways {
        &self.ways[n]
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }
}

impl Index<usize> for Cluster {
    type Output = Node;

    fn index(&self, n: usize) -> &Node {
        &self.nodes[n]
    }
}

impl IndexMut<usize> for Cluster {
    fn index_mut(&mut self, n: usize) -> &mut Node {
        &mut self.nodes[n]
    }
}
