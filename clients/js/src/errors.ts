/**
 * What every promise of the client rejects with.
 *
 * Codes of the server are those of the protocol (`refused`, `invalid`, `timeout`, `unsure` …). The
 * client's own: `closed` (the client was closed, or may not come back), `full` and `expired` (it
 * waited offline, and there was no room, or it took too long), `disconnected` (a call whose
 * connection was lost before the answer).
 */
export class BackchannelError extends Error {
  /**
   * @param code one word for programs.
   * @param text a sentence for people.
   * @param field the path of what was wrong, such as `$.data.age`, where it is known.
   */
  constructor(
    readonly code: string,
    text: string,
    readonly field?: string,
  ) {
    super(text || code);
  }

  override name = "BackchannelError";
}
