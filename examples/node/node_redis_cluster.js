// Tasks in a cluster, with node-redis. Usage: node node_redis_cluster.js redis://127.0.0.1:7000

import { createCluster } from 'redis';

import { Tasks } from './pmcptask.js';
import { showAll, showManyOwners } from './shown.js';

/** @param {{ sendCommand(key: string, isRead: boolean, words: string[]): Promise<any> }} client */
function tasksOf(client) {
  // The key leads to its node.
  return new Tasks((key, isRead, words) => client.sendCommand(key, isRead, words), { hashTags: true });
}

const client = createCluster({ rootNodes: [{ url: process.argv[2] }] }).on('error', console.error);
await client.connect();
// A wait needs a connection of its own, because it holds up the calls behind it.
const waitingClient = client.duplicate().on('error', console.error);
await waitingClient.connect();

await showAll(tasksOf(client), tasksOf(waitingClient));
await showManyOwners(tasksOf(client));
await Promise.all([client.close(), waitingClient.close()]);
