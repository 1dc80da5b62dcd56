# Package the Verilog that `twillcore verilog` wrote as Vivado IP.
#
#   vivado -mode batch -source package_ip.tcl -tclargs <folder of twillcore verilog> <folder for the IP>
#
# The interfaces m_axi (AXI4 manager) and s_axi (AXI4-Lite subordinate) are inferred from the names of
# the ports, aclk and aresetn likewise; done becomes an interrupt.

if {$argc != 2} {
    error "usage: -tclargs <folder of twillcore verilog> <folder for the IP>"
}
lassign $argv source_folder ip_folder
set source_folder [file normalize $source_folder]
set ip_folder [file normalize $ip_folder]
set verilog [file join $source_folder twillcore.v]
if {![file exists $verilog]} {
    error "$verilog is missing: run twillcore verilog -o $source_folder first"
}

create_project -in_memory -part xc7z020clg400-1
add_files -norecurse $verilog
set_property top twillcore [current_fileset]
update_compile_order -fileset [current_fileset]

ipx::package_project -root_dir $ip_folder -vendor twillcore -library ip -taxonomy /Twillcore \
    -import_files -force
set core [ipx::current_core]
set_property name twillcore $core
set_property version 1.0 $core
set_property display_name "Twillcore" $core
set_property description "N:M sparse neural-network accelerator" $core
set_property supported_families {zynq Production zynquplus Production} $core

foreach {port kind} {aclk clock aresetn reset done interrupt} {
    if {[llength [ipx::get_bus_interfaces $port -of_objects $core]] == 0} {
        ipx::infer_bus_interface $port xilinx.com:signal:${kind}_rtl:1.0 $core
    }
}
foreach bus {m_axi s_axi} {
    if {[llength [ipx::get_bus_interfaces $bus -of_objects $core]] == 0} {
        error "Vivado did not infer interface $bus"
    }
    ipx::associate_bus_interfaces -busif $bus -clock aclk $core
}
ipx::associate_bus_interfaces -clock aclk -reset aresetn $core

ipx::create_xgui_files $core
ipx::update_checksums $core
ipx::check_integrity $core
ipx::save_core $core
close_project
puts "IP: $ip_folder"
