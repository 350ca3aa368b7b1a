package waltest

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

const (
	ioctlShutdown = 0x8004587d // FS_IOC_SHUTDOWN: ext4, f2fs; xfs calls it XFS_IOC_GOINGDOWN
	shutdownNoLog = 2          // do not flush the file system's log
)

func shutdown(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = unix.IoctlSetPointerInt(int(d.Fd()), ioctlShutdown, shutdownNoLog)
	return errors.Join(err, d.Close())
}
