import type { Client, Messages, Options } from "./client.js";
/**
 * As `connect` of `client.js`; `name` tells those apart who use the same URL and must not share.
 *
 * Options and providers of the tab that leads are used. Where the browser lacks Web Locks or
 * BroadcastChannel, which need https or localhost, each tab has its own connection.
 */
type ConnectTabs = <M = Messages>(url: string | URL, options?: Options & {
    name?: string;
}) => Client<M>;
export declare const connect: ConnectTabs;
export * from "./client.js";
