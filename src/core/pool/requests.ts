/*
 * The requests that a server still owes answers for, in order: one small integer each, in a ring that grows by doubling.
 * The pooler releases a server only when this queue is empty: an entry too many keeps a server from others, one too few
 * gives the next client somebody else's answer.
 *
 * CopyData, CopyDone and CopyFail stand in the queue too, as marks (of a run of CopyData only the first), because what a
 * server does with a Sync depends on whether it comes inside a COPY. Nobody answers them: a mark that nothing stands in
 * front of is dropped.
 */
import { PqMsg } from '../wire/packets';
import { NoteKind, type PgPreparedStatement, type RequestNote } from './prepare';

/** What to do with the answer to a request (the original's ResponseAction). */
export const enum ResponseAction {
  FORWARD = 0,
  /** the client did not ask for it: drop the answer */
  SKIP = 1,
  /** the request was not sent: make up the answer at this place of the pipeline */
  FAKE = 2,
}

/** The subject of a client's Parse of the unnamed statement: no query has this number. */
export const UNNAMED = 0xffff_ffff;
/** The subject of the pooler's own Parse of a client's unnamed statement, on another server than before. */
export const UNNAMED_AGAIN = 0xffff_fffe;

/** An entry, taken out of its queue. */
export interface Request {
  readonly type: number;
  readonly action: ResponseAction;
  readonly note: RequestNote | null;
  readonly subject: number;
}

const INITIAL_SLOTS = 16;
/** Bits of an entry: the type byte, the action, whether a note belongs to it. */
const TYPE_MASK = 0xff;
const ACTION_SHIFT = 8;
const ACTION_MASK = 3;
const NOTE_BIT = 0x400;
/** Answered notes in front of the array of notes that are worth moving the others for. */
const NOTES_TRIM = 64;

function isCopyMark(type: number): boolean {
  return type === PqMsg.CopyDone || type === PqMsg.CopyData || type === PqMsg.CopyFail;
}

export class RequestQueue {
  private slots: Uint16Array = new Uint16Array(INITIAL_SLOTS);
  /** which statement an entry is about: see push() */
  private subjects: Uint32Array = new Uint32Array(INITIAL_SLOTS);
  private head = 0;
  count = 0;
  /** entries that were ever added */
  total = 0;
  /** `total` when the server was last idle outside a transaction: nothing was asked of it since while both are equal */
  readyTotal = 0;
  /** Syncs that were ever added. What lies between two of them succeeds up to some place and is skipped behind it. */
  segment = 0;
  /** entries whose answers are made up */
  fakes = 0;
  /** UNNAMED or UNNAMED_AGAIN: the last clearUntil() dropped such a Parse; 0 = none, UNNAMED goes before */
  droppedUnnamed = 0;
  /** the notes of those entries that have one, in the queue's order; most requests never need it */
  private notes: (RequestNote | null)[] | null = null;
  private notesHead = 0;

  /**
   * Adds a request.
   * @param type the message's type byte
   * @param note what to undo when the server does not carry it out; the caller takes it out with firstNote() before shift()
   * @param subject number of the query whose statement on the server it uses; for a Parse UNNAMED; else 0
   */
  push(type: number, action: ResponseAction, note: RequestNote | null = null, subject = 0): void {
    if (this.count === this.slots.length) this.grow();
    let slot = type | (action << ACTION_SHIFT);
    if (note !== null) {
      slot |= NOTE_BIT;
      note.segment = this.segment;
      if (this.notes === null) this.notes = [];
      this.notes.push(note);
    }
    if (action === ResponseAction.FAKE) this.fakes++;
    if (type === PqMsg.Sync) this.segment++;
    const place = (this.head + this.count) & (this.slots.length - 1);
    this.slots[place] = slot;
    this.subjects[place] = subject;
    this.count++;
    this.total++;
  }

  /** The server is idle outside a transaction, and has answered everything. */
  markReady(): void {
    if (this.count === 0) this.readyTotal = this.total;
  }

  /** True while nothing was asked of the server since it was last idle outside a transaction. */
  atStart(): boolean {
    return this.total === this.readyTotal;
  }

  /** True when a Sync is among the requests: what fails now ends before what comes next. */
  hasSync(): boolean {
    for (let at = 0; at < this.count; at++) if ((this.entryAt(at) & TYPE_MASK) === PqMsg.Sync) return true;
    return false;
  }

  /** True when one of the requests has a note. */
  hasNotes(): boolean {
    return this.notes !== null && this.notes.length > this.notesHead;
  }

  /** True when one of the requests has a note of this kind. */
  hasNote(kind: NoteKind): boolean {
    if (this.notes === null) return false;
    for (let i = this.notesHead; i < this.notes.length; i++) if (this.notes[i]?.kind === kind) return true;
    return false;
  }

  /** True when an earlier part of the pipeline prepares or closes this query on the server: it may be skipped. */
  mayChange(ps: PgPreparedStatement): boolean {
    if (this.notes === null) return false;
    for (let i = this.notesHead; i < this.notes.length; i++) {
      const note = this.notes[i] as RequestNote;
      // the notes are in the queue's order
      if (note.segment === this.segment) return false;
      if (note.server?.ps === ps) return true;
    }
    return false;
  }

  /** For each query that a request closes on the server, the first such request's note. */
  closes(): Map<PgPreparedStatement, RequestNote> {
    const first = new Map<PgPreparedStatement, RequestNote>();
    if (this.notes === null) return first;
    for (let i = this.notesHead; i < this.notes.length; i++) {
      const note = this.notes[i] as RequestNote;
      if (note.kind === NoteKind.CLOSE && note.server !== null && !first.has(note.server.ps))
        first.set(note.server.ps, note);
    }
    return first;
  }

  /** True when one of the requests is a Parse of the unnamed statement. */
  hasUnnamedParse(): boolean {
    for (let at = 0; at < this.count; at++) if (this.subjectAt(at) >= UNNAMED_AGAIN) return true;
    return false;
  }

  /** Takes everything out, settling nothing: for a batch that is sent again. */
  takeAll(): Request[] {
    const notes = this.allNotes();
    const all: Request[] = [];
    for (let at = 0; at < this.count; at++) {
      const slot = this.slots[(this.head + at) & (this.slots.length - 1)] as number;
      const note = (slot & NOTE_BIT) === 0 ? null : (notes.shift() ?? null);
      const action = ((slot >> ACTION_SHIFT) & ACTION_MASK) as ResponseAction;
      all.push({ type: slot & TYPE_MASK, action, note, subject: this.subjectAt(at) });
    }
    this.clear();
    return all;
  }

  /** Adds a mark: CopyData, CopyDone or CopyFail. */
  markCopy(type: number): void {
    if (this.count === 0) return;
    if (type === PqMsg.CopyData && (this.entryAt(this.count - 1) & TYPE_MASK) === PqMsg.CopyData) return;
    this.push(type, ResponseAction.FORWARD);
  }

  /** Whether the client has sent the end of the COPY that the oldest request began. */
  hasCopyEnd(): boolean {
    for (let at = 1; at < this.count; at++) {
      const type = this.entryAt(at) & TYPE_MASK;
      if (type === PqMsg.CopyDone || type === PqMsg.CopyFail) return true;
      if (type !== PqMsg.CopyData && type !== PqMsg.Sync) return false;
    }
    return false;
  }

  /**
   * The COPY is over that the oldest request began: drops what the server took for part of it. That is everything up to
   * CopyDone; but when it failed on its own, a Sync behind the first data may come behind the failure too, and be answered.
   * @param failed the server reported an error
   */
  endCopy(failed: boolean): void {
    let drop = 0;
    let data = false;
    for (let at = 1; at < this.count; at++) {
      const type = this.entryAt(at) & TYPE_MASK;
      if (type === PqMsg.CopyData) data = true;
      else if (type !== PqMsg.CopyDone && type !== PqMsg.CopyFail && (type !== PqMsg.Sync || (failed && data))) break;
      drop++;
      if (type === PqMsg.CopyDone || type === PqMsg.CopyFail) break;
    }
    if (drop === 0) return;
    // none of these has a note, and no answer to them is made up: the oldest takes the place of the last
    const oldest = this.slots[this.head] as number;
    const subject = this.subjects[this.head] as number;
    this.head = (this.head + drop) & (this.slots.length - 1);
    this.slots[this.head] = oldest;
    this.subjects[this.head] = subject;
    this.count -= drop;
  }

  /** True when the newest request is part of a pipeline that no Sync has ended. False when there is none. */
  owesSync(): boolean {
    if (this.count === 0) return false;
    switch (this.entryAt(this.count - 1) & TYPE_MASK) {
      case PqMsg.Parse:
      case PqMsg.Bind:
      case PqMsg.Describe:
      case PqMsg.Close:
      case PqMsg.Execute:
        return true;
      default:
        return false;
    }
  }

  /** Type byte of the oldest request, 0 when there is none. */
  firstType(): number {
    return this.count === 0 ? 0 : (this.slots[this.head] as number) & TYPE_MASK;
  }

  /** What to do with the answer of the oldest request; there must be one. */
  firstAction(): ResponseAction {
    return (((this.slots[this.head] as number) >> ACTION_SHIFT) & ACTION_MASK) as ResponseAction;
  }

  /** Note of the oldest request; there must be one. */
  firstNote(): RequestNote | null {
    if (((this.slots[this.head] as number) & NOTE_BIT) === 0) return null;
    return (this.notes as (RequestNote | null)[])[this.notesHead] as RequestNote;
  }

  /** The entry `at` places behind the oldest: type | action << 8. */
  entryAt(at: number): number {
    return (this.slots[(this.head + at) & (this.slots.length - 1)] as number) & ~NOTE_BIT;
  }

  /** Which statement the entry `at` places behind the oldest is about. */
  subjectAt(at: number): number {
    return this.subjects[(this.head + at) & (this.subjects.length - 1)] as number;
  }

  /** Note of the entry `at` places behind the oldest. O(at): for a handover. */
  noteAt(at: number): RequestNote | null {
    let place = this.notesHead;
    for (let i = 0; i <= at; i++) {
      if (((this.slots[(this.head + i) & (this.slots.length - 1)] as number) & NOTE_BIT) === 0) continue;
      if (i === at) return (this.notes as (RequestNote | null)[])[place] as RequestNote;
      place++;
    }
    return null;
  }

  /** The notes of all requests, the oldest first. */
  allNotes(): RequestNote[] {
    return this.notes === null ? [] : (this.notes.slice(this.notesHead) as RequestNote[]);
  }

  /** Drops the oldest request. */
  shift(): void {
    const slot = this.slots[this.head] as number;
    if (slot > TYPE_MASK) {
      if ((slot & NOTE_BIT) !== 0) this.shiftNote();
      if (((slot >> ACTION_SHIFT) & ACTION_MASK) === ResponseAction.FAKE) this.fakes--;
    }
    this.head = (this.head + 1) & (this.slots.length - 1);
    this.count--;
    // the server that got past what was in front of them passes over these
    while (this.count > 0 && isCopyMark((this.slots[this.head] as number) & TYPE_MASK)) {
      this.head = (this.head + 1) & (this.slots.length - 1);
      this.count--;
    }
  }

  clear(): void {
    this.head = 0;
    this.count = 0;
    this.fakes = 0;
    this.notes = null;
    this.notesHead = 0;
    // a pipeline of thousands leaves a large ring behind; an idle server should not keep it
    if (this.slots.length > 1024) {
      this.slots = new Uint16Array(INITIAL_SLOTS);
      this.subjects = new Uint32Array(INITIAL_SLOTS);
    }
  }

  /**
   * Drops requests up to and including the first whose type is `typeA` or `typeB`; all when there is none.
   * @returns the notes of what was dropped, the oldest first; null when there were none
   */
  clearUntil(typeA: number, typeB: number): RequestNote[] | null {
    let dropped: RequestNote[] | null = null;
    this.droppedUnnamed = 0;
    while (this.count > 0) {
      const type = this.firstType();
      const subject = this.subjects[this.head] as number;
      if (subject >= UNNAMED_AGAIN && subject > this.droppedUnnamed) this.droppedUnnamed = subject;
      const note = this.firstNote();
      if (note !== null) {
        if (dropped === null) dropped = [];
        dropped.push(note);
      }
      this.shift();
      if (type === typeA || type === typeB) break;
    }
    return dropped;
  }

  private shiftNote(): void {
    const notes = this.notes as (RequestNote | null)[];
    notes[this.notesHead++] = null;
    if (this.notesHead === notes.length) notes.length = 0;
    else if (this.notesHead < NOTES_TRIM || this.notesHead * 2 < notes.length) return;
    else notes.splice(0, this.notesHead);
    this.notesHead = 0;
  }

  private grow(): void {
    const old = this.slots;
    const bigger = new Uint16Array(old.length * 2);
    const subjects = new Uint32Array(old.length * 2);
    for (let i = 0; i < this.count; i++) {
      bigger[i] = old[(this.head + i) & (old.length - 1)] as number;
      subjects[i] = this.subjectAt(i);
    }
    this.slots = bigger;
    this.subjects = subjects;
    this.head = 0;
  }
}
