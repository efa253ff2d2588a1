#!/usr/bin/python3
"""A stand-in for ModemManager with one LTE modem: control port cdc-wdm0, data port wwan0.

It speaks on the lab's private system bus only, and has enough of ModemManager's interfaces for the
real NetworkManager to call the device a modem and to connect it, and for mmcli to read it. Always
true: the bus name is owned before the modem is exported, as with the real one (a modem that is there
when the name appears makes NetworkManager miss later bearer drops). The bearer's address is fixed;
packets then flow over the veth wwan0. It never touches a link.

Faults come in over the bus, on /lab/Modem, interface example.lab.Modem: Drop, Refuse, Remove, Insert,
Register, Signal.
"""

import os
import sys

import dbus
import dbus.mainloop.glib
import dbus.service
from gi.repository import GLib

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from lab.plan import PREFIX, UPLINKS  # noqa: E402

MM = "org.freedesktop.ModemManager1"
MODEM, SIMPLE, GPP = MM + ".Modem", MM + ".Modem.Simple", MM + ".Modem.Modem3gpp"
PROPERTIES = "org.freedesktop.DBus.Properties"
CELL = UPLINKS["cell"]

DISABLED, ENABLED, REGISTERED, CONNECTING, CONNECTED = 3, 6, 8, 10, 11
HOME, IDLE = 1, 0
LTE, CAPABILITY_LTE, IPV4, STATIC = 1 << 14, 1 << 3, 1, 2


class Refused(dbus.DBusException):
    _dbus_error_name = MM + ".Error.Core.Failed"


class Thing(dbus.service.Object):
    """An object whose properties are a plain dictionary, told about when they change."""

    def __init__(self, bus, path, properties):
        self.path = path
        self.properties = properties
        super().__init__(bus, path)

    def set(self, interface, **changes):
        self.properties[interface].update(changes)
        self.PropertiesChanged(interface, dbus.Dictionary(changes, "sv"), dbus.Array([], "s"))

    @dbus.service.method(PROPERTIES, "ss", "v")
    def Get(self, interface, name):
        return self.properties[interface][name]

    @dbus.service.method(PROPERTIES, "s", "a{sv}")
    def GetAll(self, interface):
        return dbus.Dictionary(self.properties.get(interface, {}), "sv")

    @dbus.service.method(PROPERTIES, "ssv")
    def Set(self, interface, name, value):
        self.set(interface, **{name: value})

    @dbus.service.signal(PROPERTIES, "sa{sv}as")
    def PropertiesChanged(self, interface, changed, invalidated):
        pass


class Manager(dbus.service.Object):
    """/org/freedesktop/ModemManager1: the version, and the list of modems."""

    def __init__(self, bus):
        self.modem = None
        super().__init__(bus, "/org/freedesktop/ModemManager1")

    def insert(self, modem):
        self.modem = modem
        self.InterfacesAdded(modem.path, modem.exported())

    def remove(self):
        path, interfaces = self.modem.path, list(self.modem.properties)
        self.modem = None
        self.InterfacesRemoved(path, interfaces)

    @dbus.service.method("org.freedesktop.DBus.ObjectManager", "", "a{oa{sa{sv}}}")
    def GetManagedObjects(self):
        found = {self.modem.path: self.modem.exported()} if self.modem else {}
        return dbus.Dictionary(found, "oa{sa{sv}}")

    @dbus.service.signal("org.freedesktop.DBus.ObjectManager", "oa{sa{sv}}")
    def InterfacesAdded(self, path, interfaces):
        pass

    @dbus.service.signal("org.freedesktop.DBus.ObjectManager", "oas")
    def InterfacesRemoved(self, path, interfaces):
        pass

    @dbus.service.method(PROPERTIES, "ss", "v")
    def Get(self, interface, name):
        return {"Version": "1.20.4"}[name]

    @dbus.service.method(PROPERTIES, "s", "a{sv}")
    def GetAll(self, interface):
        return {"Version": "1.20.4"} if interface == MM else dbus.Dictionary({}, "sv")

    @dbus.service.method(MM)
    def ScanDevices(self):
        pass


class Bearer(Thing):
    interface = MM + ".Bearer"

    def __init__(self, bus, path, settings):
        super().__init__(bus, path, {self.interface: {
            "Interface": CELL.device, "Connected": False, "Suspended": False, "Multiplexed": False,
            "ConnectionError": dbus.Struct(("", ""), signature="ss"),
            "Ip4Config": dbus.Dictionary({
                "method": dbus.UInt32(STATIC), "address": CELL.static, "prefix": dbus.UInt32(PREFIX),
                "gateway": CELL.router, "dns1": CELL.router, "mtu": dbus.UInt32(1500)}, "sv"),
            "Ip6Config": dbus.Dictionary({"method": dbus.UInt32(0)}, "sv"),
            "Stats": dbus.Dictionary({}, "sv"), "ReloadStatsSupported": False,
            "IpTimeout": dbus.UInt32(20), "BearerType": dbus.UInt32(1), "ProfileId": dbus.Int32(-1),
            "Properties": dbus.Dictionary(settings, "sv")}})

    def connected(self, yes):
        self.set(self.interface, Connected=yes)


class Sim(Thing):
    def __init__(self, bus, path):
        super().__init__(bus, path, {MM + ".Sim": {
            "Active": True, "SimIdentifier": "89014103211118510720", "Imsi": "001010123456789",
            "Eid": "", "OperatorIdentifier": "00101", "OperatorName": "Lab Mobile",
            "EmergencyNumbers": dbus.Array([], "s")}})


class Modem(Thing):
    """One modem with a SIM and at most one connected bearer."""

    def __init__(self, bus, number):
        self.bus, self.refusing, self.bearer, self.bearers_made = bus, False, None, 0
        self.number = number
        self.sim = Sim(bus, f"/org/freedesktop/ModemManager1/SIM/{number}")
        super().__init__(bus, f"/org/freedesktop/ModemManager1/Modem/{number}", {
            MODEM: {
                "Sim": dbus.ObjectPath(self.sim.path), "SimSlots": dbus.Array([], "o"),
                "PrimarySimSlot": dbus.UInt32(0), "Bearers": dbus.Array([], "o"),
                "SupportedCapabilities": dbus.Array([dbus.UInt32(CAPABILITY_LTE)], "u"),
                "CurrentCapabilities": dbus.UInt32(CAPABILITY_LTE),
                "MaxBearers": dbus.UInt32(1), "MaxActiveBearers": dbus.UInt32(1),
                "MaxActiveMultiplexedBearers": dbus.UInt32(0),
                "Manufacturer": "Lab", "Model": "Stand-in", "Revision": "1", "HardwareRevision": "1",
                "CarrierConfiguration": "", "CarrierConfigurationRevision": "",
                "DeviceIdentifier": f"lab-modem-{number}", "Device": "/sys/devices/lab/modem",
                "Physdev": "/sys/devices/lab/modem",
                "Drivers": dbus.Array(["lab"], "s"), "Plugin": "generic",
                "PrimaryPort": CELL.profile,
                "Ports": dbus.Array([dbus.Struct((CELL.profile, dbus.UInt32(6)), signature="su"),
                                     dbus.Struct((CELL.device, dbus.UInt32(2)), signature="su")], "(su)"),
                "EquipmentIdentifier": "490154203237518", "UnlockRequired": dbus.UInt32(1),
                "UnlockRetries": dbus.Dictionary({}, "uu"), "State": dbus.Int32(DISABLED),
                "StateFailedReason": dbus.UInt32(0), "AccessTechnologies": dbus.UInt32(LTE),
                "SignalQuality": dbus.Struct((dbus.UInt32(70), True), signature="ub"),
                "OwnNumbers": dbus.Array([], "s"), "PowerState": dbus.UInt32(3),
                "SupportedModes": dbus.Array([dbus.Struct((dbus.UInt32(8), dbus.UInt32(0)), signature="uu")], "(uu)"),
                "CurrentModes": dbus.Struct((dbus.UInt32(8), dbus.UInt32(0)), signature="uu"),
                "SupportedBands": dbus.Array([], "u"), "CurrentBands": dbus.Array([], "u"),
                "SupportedIpFamilies": dbus.UInt32(IPV4)},
            GPP: {
                "Imei": "490154203237518", "RegistrationState": dbus.UInt32(IDLE), "OperatorCode": "00101",
                "OperatorName": "Lab Mobile", "EnabledFacilityLocks": dbus.UInt32(0),
                "SubscriptionState": dbus.UInt32(0), "EpsUeModeOperation": dbus.UInt32(0),
                "Pco": dbus.Array([], "(ubay)"), "InitialEpsBearer": dbus.ObjectPath("/"),
                "InitialEpsBearerSettings": dbus.Dictionary({}, "sv")},
            SIMPLE: {}})

    def exported(self):
        return {name: dbus.Dictionary(values, "sv") for name, values in self.properties.items()}

    def withdraw(self):
        if self.bearer:
            self.bearer.remove_from_connection()
        self.sim.remove_from_connection()
        self.remove_from_connection()

    def state(self, new, reason=0):
        old = self.properties[MODEM]["State"]
        self.set(MODEM, State=dbus.Int32(new))
        self.StateChanged(old, new, reason)

    def registered(self, yes):
        self.set(GPP, RegistrationState=dbus.UInt32(HOME if yes else IDLE))
        if yes and self.properties[MODEM]["State"] in (ENABLED, DISABLED):
            self.state(REGISTERED)

    def drop(self):
        """The network ends the bearer."""
        if self.bearer:
            self.bearer.connected(False)
            self.set(MODEM, Bearers=dbus.Array([], "o"))
            self.bearer.remove_from_connection()
            self.bearer = None
        self.state(REGISTERED)

    @dbus.service.signal(MODEM, "iiu")
    def StateChanged(self, old, new, reason):
        pass

    @dbus.service.method(MODEM, "b")
    def Enable(self, enable):
        if enable and self.properties[MODEM]["State"] == DISABLED:
            self.state(ENABLED)
            self.registered(True)
        elif not enable:
            self.drop()
            self.state(DISABLED)

    @dbus.service.method(MODEM, "", "ao")
    def ListBearers(self):
        return self.properties[MODEM]["Bearers"]

    @dbus.service.method(MODEM, "o")
    def DeleteBearer(self, path):
        self.drop()

    @dbus.service.method(MODEM, "u")
    def SetPowerState(self, state):
        self.set(MODEM, PowerState=state)

    @dbus.service.method(SIMPLE, "a{sv}", "o")
    def Connect(self, settings):
        if self.refusing:
            raise Refused("the lab's network refuses")
        if self.properties[GPP]["RegistrationState"] != HOME:
            raise Refused("not registered")
        self.state(CONNECTING)
        self.bearers_made += 1
        path = f"/org/freedesktop/ModemManager1/Bearer/{self.number * 1000 + self.bearers_made}"
        self.bearer = Bearer(self.bus, path, settings)
        self.set(MODEM, Bearers=dbus.Array([dbus.ObjectPath(path)], "o"))
        self.bearer.connected(True)
        self.state(CONNECTED, 1)
        return dbus.ObjectPath(path)

    @dbus.service.method(SIMPLE, "o")
    def Disconnect(self, path):
        if self.bearer:
            self.drop()

    @dbus.service.method(SIMPLE, "", "a{sv}")
    def GetStatus(self):
        modem = self.properties[MODEM]
        return dbus.Dictionary({"state": dbus.UInt32(max(0, modem["State"])),
                                "signal-quality": modem["SignalQuality"],
                                "access-technologies": modem["AccessTechnologies"]}, "sv")


class Faults(dbus.service.Object):
    """What the lab can do to the modem."""

    def __init__(self, bus, manager):
        self.bus, self.manager, self.number = bus, manager, 0
        super().__init__(bus, "/lab/Modem")
        GLib.timeout_add(300, self.first)

    def first(self):
        self.Insert()
        return False

    @dbus.service.method("example.lab.Modem")
    def Drop(self):
        self.manager.modem.drop()

    @dbus.service.method("example.lab.Modem", "b")
    def Refuse(self, yes):
        self.manager.modem.refusing = yes

    @dbus.service.method("example.lab.Modem", "b")
    def Register(self, yes):
        self.manager.modem.registered(yes)

    @dbus.service.method("example.lab.Modem", "u")
    def Signal(self, percent):
        self.manager.modem.set(MODEM, SignalQuality=dbus.Struct((percent, True), signature="ub"))

    @dbus.service.method("example.lab.Modem")
    def Remove(self):
        modem = self.manager.modem
        self.manager.remove()
        modem.withdraw()

    @dbus.service.method("example.lab.Modem")
    def Insert(self):
        self.manager.insert(Modem(self.bus, self.number))
        self.number += 1


def main():
    dbus.mainloop.glib.DBusGMainLoop(set_as_default=True)
    bus = dbus.SystemBus()
    name = dbus.service.BusName(MM, bus, do_not_queue=True)
    faults = Faults(bus, Manager(bus))
    GLib.MainLoop().run()
    del name, faults


if __name__ == "__main__":
    main()
