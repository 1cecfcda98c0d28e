"""Durable files on Linux, where others may write, too: what the kernel promises, and what it has to be asked.

**What is durable, and when** (``durable``). A file has content, and a folder has the entry that names it; each is
durable only once it was synced itself:

1. ``fsync`` of the file: its bytes and its length, under whatever name.
2. ``rename`` or ``link``: from here on a running system sees the new name, and a power cut may take it back.
3. ``sync_folder`` of the folder with the new entry, and only then of the folder that lost the old one. The other way
   round a power cut between the two would leave no name at all.

Whoever reports a file as kept does so after step 3. A file that is to be there whole or not at all is written under
another name and renamed: readers see the old one or the new one, never a part. After an ``fsync`` that failed nothing
is known: the kernel marks the pages clean all the same, and the next ``fsync`` reports success. So nothing here tries
again; the file is read anew, or moved back. A filesystem that has no notion of syncing a folder says EINVAL; that is
all that it can say, and no failure. ``start_writing`` makes nothing durable; it only leaves the ``fsync`` that follows
little to do.

**Through no link** (``places``). Whoever may write in a drop folder may put a link in place of a file or of a folder,
between our look and our opening, and have us read, send or remove what lies elsewhere. O_NOFOLLOW guards the last
component of a path only, and a path that was checked is not the path that is opened. So the way from the folder that
an administrator named goes by descriptors: each component is opened in the one before, never followed, and ``..`` is
no component. What was opened is then judged by its descriptor (``fstat``): names are looked up once. O_NONBLOCK stands
beside it everywhere, since opening a pipe that nobody writes to would wait for ever.

**Who has it open** (``open_files``). There is no call that tells whether somebody has a file open for writing; but a
read lease (F_SETLEASE, F_RDLCK) is granted only while nobody has. "Refused" (EAGAIN) is a sure yes. "Granted" is a no
of this moment, and while the lease is kept whoever wants to write waits until the descriptor is closed, or for
``/proc/sys/fs/lease-break-time`` (45 s). Everything else says nothing: a file of another user without CAP_LEASE, a
filesystem without leases, a writer on another host or one that is mapped only (mmap, descriptor closed). Then the
settle time and the digest at sending are what the promise rests on. The kernel tells a holder that it is in somebody's
way by SIGIO, which kills by default; SIGURG, which nobody minds, takes its place.

**What is missing** (``places.MISSING``). ENOENT and ENOTDIR: only these say that there is no such file. EACCES, EIO,
ESTALE, ELOOP leave it open, and nothing may be concluded from them.

**On which filesystem** (``mounts``). The mount table says what kind it is and who else may write to it; ``statvfs``
how much of it this user may still fill, and whether the kernel has mounted it read-only after a fault.
"""
